"""The folders that benchmarks read, against the benchmarks' own rules."""

import ast
import importlib.util
import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image
from torch.utils.data import Dataset

from rayjobs.cli import main
from rayjobs.generate.arrangements import STYLES

TEXT = "a {} handwritten two on a black background"


def test_geneval_finds_four_images_of_each_prompt_and_its_row(tiny_turbo, tmp_path, capsys):
    """What its evaluate_images.py looks for: folders named by digits, metadata.jsonl of one JSON object, samples/DIGITS.png."""
    file, out = tmp_path / "evaluation_metadata.jsonl", tmp_path / "out"
    rows = [
        {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": c}], "prompt": TEXT.format(c)}
        for c in ("red", "blue")
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["generate", "--model", str(tiny_turbo), "--prompts", str(file), "--layout", "geneval", "--out", str(out)]
    assert main(argv) == 0
    folders = sorted(name for name in os.listdir(out) if (out / name).is_dir() and name.isdigit())
    assert folders == ["00000", "00001"]
    for name, row in zip(folders, rows, strict=True):
        assert json.loads((out / name / "metadata.jsonl").read_text()) == row
        samples = sorted(os.listdir(out / name / "samples"))
        assert [bool(re.match(r"\d+\.png", sample)) for sample in samples] == [True] * 4
        with Image.open(out / name / "samples" / samples[3]) as picture:
            assert (picture.size, picture.text["prompt"]) == ((32, 32), row["prompt"])
    file.write_text('{"prompt": "a cat"}\n')
    assert main([*argv[:-1], str(tmp_path / "other")]) == 1
    assert f"prompt 0 of {file} has no `tag`" in capsys.readouterr().err


def benchmark_dataset():
    """HPSv2's reader of a style's images, from its source: importing it takes weights and files that it does not ship."""
    found = importlib.util.find_spec("hpsv2")
    if found is None:
        pytest.skip("hpsv2 is not installed")
    tree = ast.parse((Path(found.origin).parent / "evaluation.py").read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "BenchmarkDataset"]
    names = {"Dataset": Dataset, "Image": Image, "json": json, "os": os}
    exec(compile(tree, "hpsv2", "exec"), names)
    return names["BenchmarkDataset"]


def test_hpsv2_reads_an_image_of_each_prompt_of_every_style(tiny_turbo, tmp_path):
    places, out = tmp_path / "benchmark", tmp_path / "out"
    places.mkdir()
    prompts = {style: [TEXT.format(f"{c} {style}") for c in ("red", "blue", "green")] for style in STYLES}
    for style, texts in prompts.items():
        (places / f"{style}.json").write_text(json.dumps(texts))
    argv = ["generate", "--model", str(tiny_turbo), "--layout", "hpsv2", "--out", str(out), "--prompts"]
    assert main([*argv, str(places)]) == 0
    assert sorted(os.listdir(out / "images")) == sorted(STYLES)  # HPSv2 takes each entry for a style
    read = benchmark_dataset()
    for style, texts in prompts.items():
        seen = read(str(places / f"{style}.json"), str(out / "images" / style), lambda image: image, lambda text: text)
        assert [seen[i][1] for i in range(len(seen))] == texts
        assert seen[2][0].size == (32, 32)
    lines = [json.loads(line) for line in (out / "pairs.jsonl").read_text().splitlines()]
    assert [(line["image"], line["prompt"]) for line in lines] == [
        (f"images/{style}/{n:05d}.jpg", text) for style, texts in prompts.items() for n, text in enumerate(texts)
    ]


def test_hpsv2_takes_one_style_from_its_file_and_all_four_from_a_folder(tiny_turbo, tmp_path, capsys):
    (tmp_path / "photo.json").write_text(json.dumps([TEXT.format("red")]))
    argv = ["generate", "--model", str(tiny_turbo), "--layout", "hpsv2", "--out", str(tmp_path / "out"), "--prompts"]
    assert main([*argv, str(tmp_path / "photo.json")]) == 0
    assert os.listdir(tmp_path / "out" / "images" / "photo") == ["00000.jpg"]
    assert main([*argv, str(tmp_path)]) == 1
    assert f"prompts file {tmp_path / 'anime.json'}: No such file" in capsys.readouterr().err
