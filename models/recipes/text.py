"""The tokenizer of the digits' captions, and the small text encoders that read it."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTokenizer

from models.recipes.digits import COLOURS, DIGITS, caption

TOKENS = 24


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer with one token for each word of the captions; other words are split into letters."""
    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        initial_alphabet=sorted("abcdefghijklmnopqrstuvwxyz0123456789.,-'!?"),
        show_progress=False,
    )
    bpe.train_from_iterator([caption(d, i, p) for d in range(len(DIGITS)) for i, p in COLOURS], trainer)
    learned = json.loads(bpe.to_str())["model"]
    letters = sorted({c for word in learned["vocab"] for c in word.removesuffix("</w>")})
    words = letters + [f"{c}</w>" for c in letters]
    words += sorted(w for w in learned["vocab"] if w not in words)
    vocab = {w: i for i, w in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    merges = [" ".join(m) if isinstance(m, list) else m for m in learned["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)
    return tokenizer


def text_config(tokenizer: CLIPTokenizer, width: int, **others: int) -> CLIPTextConfig:
    """A text encoder of two layers for that tokenizer."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **others,
    )
