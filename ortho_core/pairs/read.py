"""Read images and pairs into memory, for a notebook or a script: from files, pictures, arrays or a pair set.

Axes: B images, 3 × Y × X pixels.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from ortho_core.errors import NoPairSet, UserError
from ortho_core.framing.framing import Framing
from ortho_core.pairs.decoding import decoded_batches, to_images
from ortho_core.pairs.images import decode_image, to_rgb
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Failure, PairFields
from ortho_core.pictures import to_bytes, to_picture

#: One image: a file, a Pillow image, an array (Y, X, 3) uint8, or a tensor (3, Y, X), in [0, 1] or uint8.
Picture = str | Path | Image.Image | np.ndarray | Tensor

#: Rows of a pair set that are decoded together.
ROWS_READ_TOGETHER = 64


@dataclass(frozen=True)
class LoadedPairs:
    """Pairs in host memory."""

    #: (B, 3, Y, X) float32 in [0, 1].
    images: Float[Tensor, "B 3 Y X"]
    prompts: list[str]
    #: The ids of the rows in records.
    sample_ids: list[str]
    #: Rows that could not be used, with the reason.
    failures: list[Failure]

    def __len__(self) -> int:
        return len(self.prompts)

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.images.shape[1:]))
        return f"LoadedPairs({len(self)} images {shape}, {len(self.failures)} rows failed)"


def read_images(images: Picture | Sequence[Picture], size: tuple[int, int]) -> Float[Tensor, "B 3 Y X"]:
    """Images as the model gets them: (B, 3, Y, X) float32 in [0, 1], in host memory.

    `images` is one image or several: paths, Pillow images, arrays (Y, X) or (Y, X, 3) uint8, tensors (3, Y, X) or
    (B, 3, Y, X), float in [0, 1] or uint8. `size` is (Y, X), a generator's `image_size`. An image of another size is scaled to
    cover it and cropped at the centre, in 8 bits.

    Raises UserError for a file that does not exist or does not decode, and for an array or tensor that is none of these.
    """
    if isinstance(images, Tensor) and images.ndim == 4:
        several: Iterable[Picture] = images.unbind(0)
    elif isinstance(images, Picture):
        several = [images]
    else:
        several = images
    read = [_read(image, size) for image in several]
    if not read:
        raise UserError("no images: give at least one")
    return torch.stack(read)


def _read(image: Picture, size: tuple[int, int]) -> Tensor:
    """(3, Y, X) float32 in [0, 1]."""
    if isinstance(image, Tensor):
        return _of_tensor(image.detach(), size)
    if isinstance(image, str | Path):
        path = Path(image).expanduser()
        if path.is_dir():
            raise UserError(f"{path} is a folder: use read_pairs, since read_images accepts files only")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"image {path} cannot be read: {error.strerror}") from error
        return to_images([decode_image(content, size, str(path))])[0]
    if isinstance(image, np.ndarray):
        grey = image.ndim == 2
        if image.dtype != np.uint8 or not (grey or (image.ndim == 3 and image.shape[2] in (3, 4))):
            raise UserError(f"array {image.shape} {image.dtype}: accepted: (Y, X, 3) or (Y, X) uint8, from 0 to 255")
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise UserError(f"{type(image).__name__} is not an image; accepted: a path, a Pillow image, an array, a tensor")
    return _fitted(to_rgb(ImageOps.exif_transpose(image)), size)


def _of_tensor(image: Tensor, size: tuple[int, int]) -> Tensor:
    if image.ndim != 3 or image.shape[0] != 3 or not (image.is_floating_point() or image.dtype == torch.uint8):
        raise UserError(f"tensor {tuple(image.shape)} {image.dtype}: accepted: (3, Y, X), float in [0, 1] or uint8")
    if image.is_floating_point():
        low, high = float(image.min()), float(image.max())
        # Written with `not`, so that NaN is refused.
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise UserError(
                f"an image with values from {low:g} to {high:g}; accepted: [0, 1] (from [-1, 1]: x / 2 + 0.5)"
            )
    if tuple(image.shape[1:]) == tuple(size):
        exact = image.cpu().float()
        return exact.clamp(0, 1) if image.is_floating_point() else exact / 255
    return _fitted(to_picture(to_bytes(image[None])[0] if image.is_floating_point() else image.cpu()), size)


def _fitted(picture: Image.Image, size: tuple[int, int]) -> Tensor:
    return to_images([Framing.at(size).cut(picture)[0]])[0]


def read_pairs(
    location: str | Path,
    size: tuple[int, int],
    rows: int | None = None,
    *,
    prompt: str | None = None,
    fields: PairFields | None = None,
) -> LoadedPairs:
    """The first `rows` usable rows of a pair set (None: all), with their images in memory: 12·Y·X bytes each.

    `location` is a path or URL of any layout that `ortho assign --pairs` accepts: a `pairs.jsonl`, a folder of images with
    captions beside them, a folder per class, Parquet, tars. `size` is (Y, X), a generator's `image_size`. `prompt` is the prompt
    of all images that have none. `fields` has the other options of a pair set, such as the names of columns; if a message names
    an option `--id-field`, it is `id_field` here. Rows that cannot be used are in `failures`.

    Raises UserError if there is no pair set, or if it has no usable row.
    """
    if rows is not None and rows < 1:
        raise UserError(f"rows {rows}: give at least 1, or None for all")
    fields = fields or PairFields()
    if prompt is not None:
        fields = fields.model_copy(update={"prompt": prompt})
    place = location if "://" in str(location) else Path(location).expanduser()
    try:
        pairs = PairSet(place, fields)
    except NoPairSet as error:
        raise NoPairSet(str(error).replace("--prompt TEXT", "prompt=TEXT")) from error
    failures: list[Failure] = []
    batches = itertools.chain.from_iterable(
        decoded_batches(pairs, shard, ROWS_READ_TOGETHER, Framing.at(size), failures)
        for shard in pairs.shards(pairs.rows_per_shard())
    )
    kept, images, count = [], [], 0
    for batch, decoded in batches:
        kept += batch
        images.append(decoded)
        count += len(batch)
        if rows is not None and count >= rows:
            break
    if not kept:
        first = f": {failures[0].message}" if failures else ""
        raise UserError(f"{pairs.location} has no usable row{first}")
    kept = kept[:rows]
    return LoadedPairs(
        torch.cat(images)[: len(kept)], [pair.prompt for pair in kept], [pair.sample_id for pair in kept], failures
    )
