"""WebDataset: tar files in which the members with the same key are a sample (`0001.jpg`, `0001.txt`, `0001.json`).

The members of a sample are mostly adjacent, so a file can be read from any sample on. If they are not (all images first, then all
texts), each process that reads the file keeps an index of the whole file.
"""

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BufferedIOBase
from typing import Any

import numpy as np

from ortho_core.errors import BadRow, UserError
from ortho_core.pairs.captions import as_captions
from ortho_core.pairs.formats.tar_samples import TarSample, gathered, samples
from ortho_core.pairs.formats.text_lines import as_text
from ortho_core.pairs.images import SUFFIXES
from ortho_core.pairs.instead import said_of
from ortho_core.pairs.names import USUAL_PROMPTS, usual
from ortho_core.pairs.rows import Cut, PairFields, PairRecord, RecordsHaveAll, Shard
from ortho_core.storage.store import Store, TooLarge, plain_name
from ortho_core.text.parsing import NotParsedError, parse_json

TEXTS = ("txt", "prompt", "caption", "text", "cls")
_USUAL_MEMBERS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif")
IMAGE_MEMBERS = (*_USUAL_MEMBERS, *sorted({suffix[1:] for suffix in SUFFIXES} - set(_USUAL_MEMBERS)))
#: Number of tar files whose headers are read in parallel.
FILES_AT_ONCE = 16
#: A larger prompt or JSON member, in bytes, is not read.
MAX_TEXT = 1 << 20


class WebDataset(RecordsHaveAll):
    """One or more uncompressed tar files: a compressed file cannot be read from the middle."""

    def __init__(self, root: Store, files: list[tuple[str, int]], fields: PairFields) -> None:
        self.root, self.fields, self.files = root, fields, files
        #: Files whose samples are not in one piece; offsets in them are sample numbers, not bytes.
        self.scattered: set[str] = set()
        self._starts: list[tuple[np.ndarray, str]] | None = None
        self._gathered: tuple[str, list[TarSample]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "files": [], "_starts": None, "_gathered": None}

    def _index(self) -> list[tuple[np.ndarray, str]]:
        """For each file, the starts of its samples and a digest of headers and texts. Needs 8 bytes of memory per sample."""
        if self._starts is None:
            with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
                self._starts = list(pool.map(self._read_headers, [file for file, _ in self.files]))
        return self._starts

    def _read_headers(self, file: str) -> tuple[np.ndarray, str]:
        try:
            with self.root.open(file) as stream:
                starts, keys, halves, digest = [], [], 0, hashlib.sha256()
                for sample in samples(stream, 0):
                    self._digest(stream, sample, digest)
                    starts.append(sample.start)
                    keys.append(hash(sample.key))
                    halves += not self.is_complete(sample)
                if halves and len(np.unique(np.array(keys))) < len(keys):
                    self.scattered.add(file)
                    digest, starts = hashlib.sha256(), []
                    for number, sample in enumerate(gathered(stream)):
                        self._digest(stream, sample, digest)
                        starts.append(number)
        except OSError as error:
            raise UserError(
                f"{self.root.location}/{file} is not a readable, uncompressed tar file: {said_of(self.root, file, error)}"
            ) from error
        return np.array(starts, dtype=np.int64), digest.hexdigest()[:16]

    def _digest(self, stream: BufferedIOBase, sample: TarSample, digest: Any) -> None:
        digest.update(repr((sample.key, sample.members)).encode())
        for name in ("json", *self._prompts()):
            offset, size = sample.members.get(name, (0, 0))
            if 0 < size <= MAX_TEXT:
                stream.seek(offset)
                digest.update(stream.read(size))

    def is_complete(self, sample: TarSample) -> bool:
        """Whether a sample has a prompt, or JSON that may have one, and an image."""
        return self.prompt_of(sample) is not None and (not self.fields.with_images or self.images_of(sample) != [])

    def prompt_of(self, sample: TarSample) -> str | None:
        """The member with the prompt."""
        return next((name for name in (*self._prompts(), "json") if name in sample.members), None)

    def _prompts(self) -> tuple[str, ...]:
        return (self.fields.prompt_field,) if self.fields.prompt_field else TEXTS

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

    def read(self, shard: Shard) -> Iterator[PairRecord | BadRow]:
        with self.root.open(shard.file) as stream:
            rows = samples(stream, shard.offset)
            if shard.file in self.scattered:
                if self._gathered is None or self._gathered[0] != shard.file:
                    self._gathered = shard.file, list(gathered(stream))
                rows = iter(self._gathered[1][shard.offset :])
            for _, sample in zip(range(shard.span), rows, strict=False):
                try:
                    yield self._record(stream, shard.file, sample)
                except BadRow as bad:
                    yield bad

    def _record(self, stream: BufferedIOBase, file: str, sample: TarSample) -> PairRecord:
        """The record of a sample. Raises BadRow."""
        fields, members = self.fields, sample.members
        offset, size = members[self._image_of(sample)]
        values: dict[str, Any] = {}
        position = stream.tell()
        if "json" in members:
            record = self._text(stream, sample, "json")
            try:
                values = parse_json(record)
            except NotParsedError as error:
                raise BadRow("not-json", f"{sample.key}.json is not a JSON object: {error.why}") from error
            if not isinstance(values, dict):
                raise BadRow("not-json", f"{sample.key}.json is a JSON {type(values).__name__}, not an object")
        values["__key__"] = sample.key
        prompts = self._prompts()
        prompt = next((name for name in prompts if name in members or name in values), prompts[0])
        if prompt in members:
            values[prompt] = as_captions(self._text(stream, sample, prompt), fields.caption)
        elif prompt not in values and fields.prompt_field is None:
            prompt = next(iter(usual(values, USUAL_PROMPTS)), prompt)
        stream.seek(position)
        row_id = values.get(fields.id_field) if fields.id_field else None
        stem = sample.key.rpartition("/")[2]
        names = (prompt, "", fields.id_field)
        all_fields = [*members, *values]
        return PairRecord(values.get(prompt), f"{file}#{offset}+{size}", names, row_id, stem=stem, fields=all_fields)

    def images_of(self, sample: TarSample) -> list[str]:
        """The image member: the first with a usual extension, else all members whose extension ends in one (`seg.png`)."""
        members, wanted = sample.members, self.fields.image_field
        for name in (wanted,) if wanted else IMAGE_MEMBERS:
            if name in members:
                return [name]
        return [] if wanted else [name for name in members if name.rpartition(".")[2] in IMAGE_MEMBERS]

    def _image_of(self, sample: TarSample) -> str:
        """The only image member. Raises BadRow if there is none, or more than one."""
        members, wanted = sample.members, self.fields.image_field
        images = self.images_of(sample)
        if len(images) == 1:
            return images[0]
        accepted = f".{wanted}" if wanted else ".jpg, .png, .webp, ..."
        has = f".{', .'.join(members)}"[:200]
        raise BadRow("missing-image", f"sample {sample.key!r} needs exactly one image, {accepted}; it has {has}")

    @staticmethod
    def _text(stream: BufferedIOBase, sample: TarSample, name: str) -> str:
        offset, size = sample.members[name]
        if size > MAX_TEXT:
            raise BadRow("too-large", f"{sample.key}.{name} has {size} bytes; accepted: {MAX_TEXT}")
        stream.seek(offset)
        try:
            return as_text(stream.read(size))
        except UnicodeDecodeError as error:
            raise BadRow("not-text", f"{sample.key}.{name} is not UTF-8: {error}") from error

    def fetch(self, image: str) -> bytes:
        """Reads the bytes that `FILE#OFFSET+SIZE` names."""
        named = re.fullmatch(r"(.+\.tar)#([0-9]+)\+([0-9]+)", image)
        if named is None:
            raise BadRow("missing-image", f"image {image[:200]!r} is not a member of a tar file, FILE.tar#OFFSET+SIZE")
        file, offset, size = named.groups()
        if int(size) > self.fields.max_image_bytes:
            raise TooLarge(int(size))
        return self.root.read(plain_name(file), int(offset), int(size))
