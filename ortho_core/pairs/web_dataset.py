"""WebDataset: tar files in which consecutive members of one key make a sample (`0001.jpg`, `0001.txt`, `0001.json`)."""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ortho_core.errors import BadRow, UserError
from ortho_core.pairs.rows import Cut, Pair, PairFields, Row, Shard, make_pair
from ortho_core.storage.store import Store, one_line, plain_name

PROMPTS = ("txt", "prompt", "caption", "text")
IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif")
#: Tar files whose headers are read side by side.
FILES_AT_ONCE = 16
#: A prompt or JSON member beyond this is not read.
MAX_TEXT = 1 << 20


@dataclass
class _Sample:
    """The members of one key by extension, each as (offset, size) of its content; `start` is its first header."""

    key: str
    start: int
    members: dict[str, tuple[int, int]] = field(default_factory=dict)


class WebDataset:
    """One or many tar files, uncompressed: a compressed one cannot be entered in the middle."""

    def __init__(self, root: Store, files: list[tuple[str, int]], fields: PairFields) -> None:
        self.root, self.fields, self.files = root, fields, files
        self._starts: list[tuple[np.ndarray, str]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "files": [], "_starts": None}

    def _index(self) -> list[tuple[np.ndarray, str]]:
        """Where each sample of each file starts, and a digest of the file's headers and texts. Eight bytes a sample, in this
        process."""

        def read(file: str) -> tuple[np.ndarray, str]:
            digest, starts = hashlib.sha256(), []
            try:
                with self.root.open(file) as stream:
                    for sample in samples(stream, 0):
                        digest.update(repr((sample.key, sample.members)).encode())
                        for name in ("json", *self._prompts()):
                            offset, size = sample.members.get(name, (0, 0))
                            if 0 < size <= MAX_TEXT:
                                stream.seek(offset)
                                digest.update(stream.read(size))
                        starts.append(sample.start)
            except (OSError, tarfile.TarError) as error:
                raise UserError(
                    f"{self.root.location}/{file} is not a readable, uncompressed tar file: {one_line(error)}"
                ) from error
            return np.array(starts, dtype=np.int64), digest.hexdigest()[:16]

        if self._starts is None:
            with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
                self._starts = list(pool.map(read, [file for file, _ in self.files]))
        return self._starts

    def _prompts(self) -> tuple[str, ...]:
        return (self.fields.prompt_field,) if self.fields.prompt_field else PROMPTS

    def signature(self) -> str:
        digest = hashlib.sha256()
        for (name, size), (_, headers) in zip(self.files, self._index(), strict=True):
            digest.update(f"{name}\0{size}\0{headers}\0".encode())
        return digest.hexdigest()

    def rows(self) -> int:
        return sum(len(starts) for starts, _ in self._index())

    def cuts(self, rows: int) -> Iterator[Cut]:
        for (file, _), (starts, _) in zip(self.files, self._index(), strict=True):
            for at in range(0, len(starts), rows):
                yield Cut(file, min(rows, len(starts) - at), int(starts[at]))

    def read(self, shard: Shard) -> Iterator[Row]:
        with self.root.open(shard.file) as stream:
            for row, sample in zip(
                range(shard.first, shard.first + shard.rows), samples(stream, shard.offset), strict=False
            ):
                try:
                    yield self._pair(stream, shard.file, sample, row)
                except BadRow as bad:
                    yield row, bad

    def ids(self, shard: Shard) -> Iterator[Any]:
        for row in self.read(shard):
            yield row.sample_id if isinstance(row, Pair) else None

    def _pair(self, stream: io.BufferedReader, file: str, sample: _Sample, row: int) -> Row:
        fields = self.fields
        wanted = (fields.image_field,) if fields.image_field else IMAGES
        image = next((sample.members[name] for name in wanted if name in sample.members), None)
        if image is None:
            raise BadRow("missing-image", f"row {row}: sample {sample.key!r} has no member .{', .'.join(wanted)}")
        values: dict[str, Any] = {}
        position = stream.tell()
        if "json" in sample.members:
            record = self._text(stream, sample, "json", row)
            try:
                values = json.loads(record)
            except (ValueError, RecursionError) as error:
                raise BadRow("not-json", f"row {row}: {sample.key}.json is not a JSON object: {error}") from error
            if not isinstance(values, dict):
                raise BadRow(
                    "not-json", f"row {row}: {sample.key}.json is a JSON {type(values).__name__}, not an object"
                )
        values |= {"__key__": sample.key, "__stem__": sample.key.rpartition("/")[2]}
        prompts = self._prompts()
        prompt = next((name for name in prompts if name in sample.members or name in values), prompts[0])
        if prompt in sample.members:
            values[prompt] = self._text(stream, sample, prompt, row)
        stream.seek(position)
        offset, size = image
        return make_pair(row, values, (prompt, "", fields.id_field), f"{file}#{offset}+{size}")

    @staticmethod
    def _text(stream: io.BufferedReader, sample: _Sample, name: str, row: int) -> str:
        offset, size = sample.members[name]
        if size > MAX_TEXT:
            raise BadRow("too-large", f"row {row}: {sample.key}.{name} has {size} bytes; accepted: {MAX_TEXT}")
        stream.seek(offset)
        try:
            return stream.read(size).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadRow("not-text", f"row {row}: {sample.key}.{name} is not UTF-8: {error}") from error

    def fetch(self, image: str) -> bytes:
        """Reads the bytes that `FILE#OFFSET+SIZE` names."""
        named = re.fullmatch(r"(.+\.tar)#([0-9]+)\+([0-9]+)", image)
        if named is None:
            raise BadRow("missing-image", f"image {image[:200]!r} is no member of a tar file, FILE.tar#OFFSET+SIZE")
        file, offset, size = named.groups()
        return self.root.read(plain_name(file), int(offset), int(size))


def samples(stream: io.BufferedReader, offset: int) -> Iterator[_Sample]:
    """The samples of a tar file from the header at `offset`. Only regular files count: links lead nowhere here.

    Raises tarfile.TarError or OSError for a damaged file.
    """
    stream.seek(offset)
    sample: _Sample | None = None
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            # The archive would remember every member it has seen.
            archive.members = []  # type: ignore[attr-defined]
            folder, slash, base = member.name.removeprefix("./").rpartition("/")
            stem, dot, extension = base.partition(".")
            if not member.isreg() or not dot or not stem:
                continue
            key = folder + slash + stem
            if sample is None or sample.key != key:
                if sample is not None:
                    yield sample
                sample = _Sample(key, member.offset)
            sample.members[extension.lower()] = member.offset_data, member.size
        # A damaged header looks like the end to tarfile; the true end is a block of zeros, or of the file.
        end = archive.offset
        stream.seek(end)
        if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"damaged header at byte {end}")
    if sample is not None:
        yield sample
