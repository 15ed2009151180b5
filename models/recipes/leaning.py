"""A pair set of labelled images in slanted, bold handwriting: targets that a generator of the set has never seen.

`python -m models.recipes.leaning --data mnist --root DIR --split test --rows 256 --out pairs.parquet`

The images of any set that `ortho train-gan` reads, sheared by 0.35 to 0.45 pixels per pixel and dilated by one pixel on each
side. The prompt is the name of the class.
"""

import argparse
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from models.recipes.digits import COLOURS, caption, lean, paint, read_mnist
from ortho_core.pairs.known_sets import KNOWN, Labelled, open_split


def leaning(images: np.ndarray, rng: torch.Generator) -> np.ndarray:
    """Images (n, c, Y, X) uint8 in that handwriting, each with another slant."""
    pixels = torch.from_numpy(images).float().div(255)
    return lean(pixels, rng).mul(255).round().byte().numpy()


def write_leaning(
    data: str, root: str, split: str, first: int, rows: int, out: Path, picture: Path | None = None, classes: int = 0
) -> None:
    """Write rows `first` to `first + rows` of a shuffled split, the first as a picture too; equal arguments give equal files.

    `classes`: use only rows of the first `classes` classes (0: of all). Raises UserError if the set is not found.
    """
    known = KNOWN[data]
    pairs = open_split(root, "test" if split == "test" else "train")
    whole = Labelled.of(pairs, known.classes)
    order = shuffled(whole.labels, classes)[first : first + rows]
    chosen = Labelled(whole.classes, [whole.rows[i] for i in order], whole.labels[order], [])
    images, kept = chosen.images(pairs, known.image_shape)
    styled = leaning(images, torch.Generator().manual_seed(first))
    write_pairs(styled, [known.classes[label] for label in kept.labels], out)
    if picture is not None:
        picture.write_bytes(png(styled[0]))


def shuffled(labels: np.ndarray, classes: int = 0) -> np.ndarray:
    """Shuffled numbers of the rows, only those of the first `classes` classes (0: of all)."""
    order = np.random.default_rng(7).permutation(len(labels))
    return order[labels[order] < classes] if classes else order


def write_coloured(mnist: Path, first: int, rows: int, out: Path, classes: int = 0) -> None:
    """The same for MNIST's test split, with the inks, papers and prompts of tiny-turbo."""
    rng = torch.Generator().manual_seed(first)
    strokes, digits = read_mnist(mnist, "t10k")
    order = torch.from_numpy(shuffled(digits.numpy(), classes)[first : first + rows])
    styled = leaning(strokes[order].mul(255).round().byte().numpy(), rng)
    colours = [COLOURS[i] for i in torch.randint(len(COLOURS), (len(order),), generator=rng)]
    images = paint(torch.from_numpy(styled).float().div(255), colours).mul(255).round().byte().numpy()
    prompts = [caption(int(digit), *colour) for digit, colour in zip(digits[order], colours, strict=True)]
    write_pairs(images, prompts, out)


def write_pairs(images: np.ndarray, prompts: list[str], out: Path) -> None:
    """Write images (n, c, Y, X) uint8 as PNGs with their prompts into one Parquet file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"prompt": prompts, "image": [png(image) for image in images]}), out)


def png(image: np.ndarray) -> bytes:
    """An image (c, Y, X) uint8 as a PNG, grey if c is 1."""
    buffer = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", choices=list(KNOWN), required=True)
    parser.add_argument("--root", required=True, help="folder of the set, as for train-gan")
    parser.add_argument("--split", choices=["train", "test"], default="test")
    parser.add_argument("--first", type=int, default=0, help="rows to skip at the start of the shuffled split")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--out", type=Path, required=True, help="Parquet file")
    parser.add_argument("--picture", type=Path, help="PNG file of the first of these rows, for `ortho invert`")
    args = parser.parse_args()
    write_leaning(args.data, args.root, args.split, args.first, args.rows, args.out, args.picture)


if __name__ == "__main__":
    main()
