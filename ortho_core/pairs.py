"""Pair sets: a JSON-lines file of (prompt, image) rows and the images beside it; parsing, validation and decoding.

A pair set is named by its folder (holding `pairs.jsonl`) or by a `.jsonl` file; image paths are relative to the folder of
that file and may not leave it. Images come out as (3, Y, X) float32 in [0, 1].
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ortho_core.errors import BadRow, UserError

#: Larger images are refused before they are decoded (a decompression bomb is small on disk).
MAX_PIXELS = 80_000_000


class PairFields(BaseModel):
    """Which fields of a row hold what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_field: str = Field("prompt", min_length=1, description="field of a row that holds the prompt")
    image_field: str = Field("image", min_length=1, description="field of a row that holds the image path")

    id_field: str | None = Field(
        None, min_length=1, description="field that holds a row's own unique id (default: line number and image name)"
    )

    def pair_fields(self) -> "PairFields":
        """These fields alone, from a job that has them among its own."""
        return PairFields(**{name: getattr(self, name) for name in PairFields.model_fields})


@dataclass(frozen=True)
class Pair:
    """One usable row. `image` is the path as the row gives it, `path` where it lies."""

    sample_id: str
    row: int
    prompt: str
    image: str
    path: Path


@dataclass(frozen=True)
class Shard:
    """A run of consecutive rows: rows `first` to `first + rows - 1`, starting at byte `offset` of the file."""

    index: int
    first: int
    rows: int
    offset: int


class PairSet:
    """A pair set on a local disk. Raises UserError if its file is missing or holds no rows."""

    def __init__(self, location: str | Path, fields: PairFields | None = None) -> None:
        path = Path(location)
        self.fields = fields or PairFields()
        self.file = path if path.suffix == ".jsonl" else path / "pairs.jsonl"
        self.root = self.file.parent.resolve()
        if not self.file.is_file():
            raise UserError(
                f"no pair set at {location}: {self.file} does not exist "
                '(expected: one JSON object per line, {"prompt": "...", "image": "images/0001.png"})'
            )

    def fingerprint(self) -> str:
        """SHA-256 (16 hex digits) of the rows and the field names; image files count by their names."""
        with self.file.open("rb") as stream:
            rows = hashlib.file_digest(stream, "sha256").hexdigest()
        return hashlib.sha256(f"{rows}\0{self.fields.model_dump_json()}".encode()).hexdigest()[:16]

    def shards(self, rows_per_shard: int) -> list[Shard]:
        """Cut the file into shards; depends on the file alone, memory grows with the shards, not the rows."""
        shards: list[Shard] = []
        start = count = offset = 0
        with self.file.open("rb") as stream:
            for line in stream:
                if line.strip():
                    if count == 0:
                        start = offset
                    count += 1
                    if count == rows_per_shard:
                        shards.append(Shard(len(shards), len(shards) * rows_per_shard, count, start))
                        count = 0
                offset += len(line)
        if count:
            shards.append(Shard(len(shards), len(shards) * rows_per_shard, count, start))
        if not shards:
            raise UserError(f"{self.file} holds no rows")
        return shards

    def read(self, shard: Shard) -> Iterator[Pair | tuple[int, BadRow]]:
        """Each row of the shard as a Pair, or as (row number, what is wrong with it)."""
        row = shard.first
        with self.file.open("rb") as stream:
            stream.seek(shard.offset)
            for line in stream:
                if row == shard.first + shard.rows:
                    return
                if not line.strip():
                    continue
                try:
                    yield self.parse(line, row)
                except BadRow as bad:
                    yield row, bad
                row += 1

    def parse(self, line: bytes, row: int) -> Pair:
        """Parse and validate one line. Raises BadRow."""
        try:
            # Byte-order marks are what Windows editors put before the first row.
            record = json.loads(line.decode("utf-8-sig"))
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            raise BadRow("not-json", f"row {row} is not a JSON object in UTF-8: {error}") from error
        if not isinstance(record, dict):
            raise BadRow("not-json", f"row {row} is a JSON {type(record).__name__}, not an object")
        prompt, image = record.get(self.fields.prompt_field), record.get(self.fields.image_field)
        if not isinstance(prompt, str) or not prompt.strip():
            found = "missing" if prompt is None else repr(prompt)[:60]
            raise BadRow("missing-prompt", f"row {row}: field {self.fields.prompt_field!r} is {found}, not a text")
        if not isinstance(image, str) or not image:
            found = "missing" if image is None else repr(image)[:60]
            raise BadRow("missing-image", f"row {row}: field {self.fields.image_field!r} is {found}, not a path")
        sample_id = f"{row:06d}_{Path(image).stem}"
        if self.fields.id_field is not None:
            own = record.get(self.fields.id_field)
            if isinstance(own, bool) or not isinstance(own, str | int) or own == "":
                found = "missing" if own is None else repr(own)[:60]
                raise BadRow(
                    "missing-id", f"row {row}: field {self.fields.id_field!r} is {found}, not a text or number"
                )
            sample_id = str(own)
        try:
            (prompt + image + sample_id).encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair: valid JSON, but no text
            raise BadRow("not-text", f"row {row} holds characters that are not Unicode text: {error}") from error
        return Pair(sample_id, row, prompt, image, self.resolve(image, f"row {row}"))

    def resolve(self, image: str, where: str) -> Path:
        """The image's path after following links. Raises BadRow if it leaves the root or is not a file."""
        try:
            path = (self.root / image).resolve()
            inside = path.is_relative_to(self.root)
            exists = inside and path.is_file()
        except (OSError, ValueError, RuntimeError) as error:
            raise BadRow("missing-image", f"{where}: image path {image[:200]!r}: {error}") from error
        if not inside:
            raise BadRow("outside-root", f"{where}: image {image!r} lies outside the pair set's folder {self.root}")
        if not exists:
            raise BadRow("missing-image", f"{where}: image {image!r} does not exist under {self.root}")
        return path


def decode_image(path: Path, size: tuple[int, int]) -> Tensor:
    """Decode a still image to (3, Y, X) float32 in [0, 1]; `size` is (Y, X).

    EXIF-rotated, converted to RGB with alpha over white, scaled (Lanczos) to cover the size and cropped at the centre.
    Raises BadRow for anything that is not one decodable image of at most `MAX_PIXELS` pixels.
    """
    Y, X = size
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise BadRow("too-large", f"{path.name}: {opened.width}×{opened.height} exceeds {MAX_PIXELS} pixels")
            frames = getattr(opened, "n_frames", 1)
            if frames > 1:
                raise BadRow("animated", f"{path.name} has {frames} frames; a still image is expected")
            picture = to_rgb(ImageOps.exif_transpose(opened))
    except Image.DecompressionBombError as error:
        raise BadRow("too-large", f"{path.name}: {error}") from error
    except (BadRow, MemoryError):
        raise
    except (
        Exception
    ) as error:  # Pillow's decoders raise whatever damaged bytes lead them to, struct.error and TypeError too
        raise BadRow("undecodable-image", f"{path.name} does not decode: {str(error)[:200]}") from error
    picture = ImageOps.fit(picture, (X, Y), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(picture, dtype=np.float32)).div_(255).permute(2, 0, 1).contiguous()


def to_rgb(picture: Image.Image) -> Image.Image:
    """RGB, with transparency laid over white and 16-bit grey scaled to 8 (Pillow alone would clip it)."""
    if picture.mode.startswith("I;16") or picture.mode == "I":
        picture = Image.fromarray((np.asarray(picture).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        paper = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(paper, picture).convert("RGB")
    return picture.convert("RGB")
