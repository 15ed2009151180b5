"""Contact sheets: many small images in one PNG, with or without labels."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor


def to_bytes(images: Float[Tensor, "B 3 Y X"]) -> Tensor:
    """Images in [0, 1], clamped and rounded to uint8 on the CPU."""
    return images.clamp(0, 1).mul(255).round().byte().cpu()


def grid(images: Tensor, columns: int, gap: int = 2) -> Tensor:
    """Lay out uint8 images (B, 3, Y, X) row by row with white gaps, as one uint8 image (3, Y', X')."""
    B, _, Y, X = images.shape
    rows = -(-B // columns)
    sheet = torch.full((3, rows * (Y + gap) + gap, columns * (X + gap) + gap), 255, dtype=torch.uint8)
    for i, image in enumerate(images):
        y, x = gap + (i // columns) * (Y + gap), gap + (i % columns) * (X + gap)
        sheet[:, y : y + Y, x : x + X] = image
    return sheet


def padded(images: Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
    """uint8 images (3, Y, X) of several sizes as (B, 3, Y', X'), centred on white; `size` is (Y', X') (None: the largest)."""
    Y, X = size or (max(image.shape[1] for image in images), max(image.shape[2] for image in images))
    sheet = torch.full((len(images), 3, Y, X), 255, dtype=torch.uint8)
    for cell, image in zip(sheet, images, strict=True):
        _, y, x = image.shape
        top, left = (Y - y) // 2, (X - x) // 2
        cell[:, top : top + y, left : left + x] = image
    return sheet


def to_picture(image: Tensor) -> Image.Image:
    """A uint8 image (3, Y, X) as a Pillow image."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def contact_sheet(
    pictures: Sequence[Image.Image], columns: int, captions: Sequence[str] = (), cell: int = 256
) -> Image.Image:
    """One sheet of pictures of equal size, row by row on white, each about `cell` pixels wide, with two-line captions below.

    Small pictures are enlarged by a whole factor, large ones are scaled down.
    """
    longer = max(pictures[0].size)
    factor = max(1, cell // longer) if longer <= cell else cell / longer
    width, height = (max(1, round(side * factor)) for side in pictures[0].size)
    font, gap, below = ImageFont.load_default(size=14), 6, 38 if captions else 0
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + below + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        x, y = gap + i % columns * (width + gap), gap + i // columns * (height + below + gap)
        method = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
        sheet.paste(picture.convert("RGB").resize((width, height), method), (x, y))
        if captions:
            lines = textwrap.wrap(captions[i], max(4, width // 8), max_lines=2, placeholder=" …")
            draw.multiline_text((x, y + height + 2), "\n".join(lines), fill="black", font=font, spacing=2)
    return sheet


def save_png(images: Tensor, path: Path | io.BytesIO, columns: int = 16) -> None:
    """Write images (B, 3, Y, X) as one sheet without gaps, which `load_sheet` splits again."""
    to_picture(grid(images, min(columns, len(images)), gap=0)).save(path, "PNG")


def load_sheet(path: Path | io.BytesIO, size: tuple[int, int]) -> Tensor:
    """The uint8 images (B, 3, Y, X) of a sheet that `save_png` wrote to a file or stream, with the last row's blank cells."""
    Y, X = size
    with Image.open(path) as picture:
        sheet = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    rows, columns = sheet.shape[1] // Y, sheet.shape[2] // X
    cells = sheet.reshape(3, rows, Y, columns, X).permute(1, 3, 0, 2, 4)
    return cells.reshape(rows * columns, 3, Y, X)


def labelled_rows(rows: dict[str, Tensor], scale: int = 1) -> Image.Image:
    """One row of images per label, the label to the left; images are enlarged by the whole factor `scale`.

    Images are (B, 3, Y, X), uint8 or float in [0, 1]. All have one size. A notebook displays the returned picture.
    """
    rows = {label: to_bytes(images) if images.is_floating_point() else images for label, images in rows.items()}
    first = next(iter(rows.values()))
    count, _, Y, X = first.shape
    margin, gap = 150, 3
    cell_y, cell_x = Y * scale + gap, X * scale + gap
    sheet = Image.new("RGB", (margin + count * cell_x, len(rows) * cell_y), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for r, (label, images) in enumerate(rows.items()):
        draw.multiline_text((6, r * cell_y + cell_y // 2), label, fill="black", font=font, anchor="lm")
        for c, image in enumerate(images):
            picture = to_picture(image).resize((X * scale, Y * scale), Image.Resampling.NEAREST)
            sheet.paste(picture, (margin + c * cell_x, r * cell_y))
    return sheet
