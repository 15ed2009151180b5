"""The shipped CLIP: loads offline from safetensors alone, and names digits it never saw in a hand it never saw."""

import json
import socket

import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from ortho_core.evaluation.features import TINY_CLIP

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def test_its_weights_are_one_small_safetensors_file():
    names = {file.name for file in TINY_CLIP.iterdir()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    assert names == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", *tokenizer}
    assert sum(file.stat().st_size for file in TINY_CLIP.iterdir()) <= 6_000_000


def test_it_names_the_digits_of_the_heldout_pairs_without_a_network(digits, monkeypatch):
    def refuse(*_):
        raise AssertionError("the shipped model asked for a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    model = CLIPModel.from_pretrained(TINY_CLIP, local_files_only=True).eval()
    tokenizer = CLIPTokenizer.from_pretrained(TINY_CLIP, local_files_only=True)
    processor = CLIPImageProcessor.from_pretrained(TINY_CLIP, local_files_only=True)
    rows = [json.loads(line) for line in (digits / "heldout.jsonl").read_text().splitlines()]
    images = [Image.open(digits / row["image"]).convert("RGB") for row in rows]
    # Each image against the captions that differ from its own in the digit alone.
    spoken = [next(word for word in row["prompt"].split() if word in DIGITS) for row in rows]
    texts = [row["prompt"].replace(word, other) for row, word in zip(rows, spoken, strict=True) for other in DIGITS]
    captions = sorted(set(texts))
    with torch.no_grad():
        out = model(
            **tokenizer(captions, padding="max_length", return_tensors="pt"),
            **processor(images, return_tensors="pt"),
        )
    columns = torch.tensor([captions.index(text) for text in texts]).view(len(rows), len(DIGITS))
    ten = out.logits_per_image.gather(1, columns)
    wanted = torch.tensor([DIGITS.index(word) for word in spoken])
    assert (ten.argmax(1) == wanted).float().mean() >= 0.9
    # And for one prompt, its own image scores above the average image: what a ranking of samples goes by.
    own = torch.tensor([captions.index(row["prompt"]) for row in rows])
    scores = out.logits_per_text[own]
    assert (scores.diagonal() > scores.mean(1)).float().mean() >= 0.95
