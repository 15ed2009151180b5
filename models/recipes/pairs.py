"""Make `examples/digits`: `python -m models.recipes.pairs --mnist DIR --out examples/digits`.

Real digits of MNIST's test split in slanted, bold handwriting. tiny-turbo was trained on neither, but it knows the prompts
and colours.
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image

from models.recipes.digits import COLOURS, caption, lean, paint, read_mnist

TRAIN, HELDOUT = 512, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, required=True, help="folder with the four IDX files")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rng = torch.Generator().manual_seed(7)
    strokes, digits = read_mnist(args.mnist, "t10k")
    index = torch.randperm(len(strokes), generator=rng)[: TRAIN + HELDOUT]
    strokes, digits = strokes[index], digits[index]
    strokes = lean(strokes, rng)
    colours = [COLOURS[i] for i in torch.randint(len(COLOURS), (len(index),), generator=rng)]
    images = paint(strokes, colours).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for i, (image, digit, colour) in enumerate(zip(images, digits, colours, strict=True)):
        name = f"images/{i:04d}.png"
        Image.fromarray(image).save(args.out / name, optimize=True)
        rows.append(json.dumps({"prompt": caption(int(digit), *colour), "image": name}) + "\n")
    (args.out / "pairs.jsonl").write_text("".join(rows[:TRAIN]))
    (args.out / "heldout.jsonl").write_text("".join(rows[TRAIN:]))


if __name__ == "__main__":
    main()
