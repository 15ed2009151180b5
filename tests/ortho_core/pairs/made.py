"""Pair sets made for tests, and what comes out of one."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ortho_core.errors import BadRow, UserError
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Pair, PairFields


def png(shade: int = 128) -> bytes:
    """A small grey image, another one for every shade."""
    stream = io.BytesIO()
    Image.new("L", (8, 8), shade).save(stream, "PNG")
    return stream.getvalue()


def write_images(folder: Path, *names: str) -> None:
    for shade, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(shade))


def write_lines(file: Path, *lines: bytes | str | dict) -> Path:
    encoded = [json.dumps(x) if isinstance(x, dict) else x for x in lines]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join((x.encode() if isinstance(x, str) else x) + b"\n" for x in encoded))
    return file


def write_parquet(file: Path, rows_per_group: int = 1_000, **columns) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file, row_group_size=rows_per_group)
    return file


def write_tar(file: Path, members: dict[str, bytes | str], form: int = tarfile.USTAR_FORMAT) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=form) as archive:
        for name, content in members.items():
            encoded = content.encode() if isinstance(content, str) else content
            about = tarfile.TarInfo(name)
            about.size = len(encoded)
            archive.addfile(about, io.BytesIO(encoded))
    return file


def write_captions(folder: Path, captions: dict[str, str], suffix: str = ".txt") -> Path:
    """Images of these names, in folders or not, each with its caption beside it."""
    write_images(folder, *captions)
    for name, caption in captions.items():
        (folder / name).with_suffix(suffix).write_text(caption, encoding="utf-8")
    return folder


def line(location: Path | str, **fields: str) -> str:
    """What is said of a set."""
    return PairSet(location, PairFields(**fields)).line()


def prompts(location: Path | str, rows_per_shard: int = 100, **fields: str) -> dict[str, str]:
    """The prompt of each image, by what a record calls it; the reason in place of the prompt where a row is bad."""
    pairs = PairSet(location, PairFields(**fields))
    found: dict[str, str] = {}
    for row in read_all(pairs, rows_per_shard):
        if isinstance(row, tuple):
            found[f"row {row[0]}"] = row[1].reason
        else:
            bad = pairs.images([row], (4, 4))[0]
            found[row.image] = bad.reason if isinstance(bad, BadRow) else row.prompt
    return found


def refusal(location: Path | str, **fields: str) -> str:
    """The message that a set is refused with, which is one line."""
    with pytest.raises(UserError) as raised:
        PairSet(location, PairFields(**fields)).rows()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def write_set(kind: str, folder: Path, prompts: list[str]) -> Path:
    """A set of the same rows in any format, over two files where the format has several; row i has the image `png(i)`."""
    numbers = list(range(len(prompts)))
    half = len(prompts) // 2
    if kind in ("pairs.jsonl", "metadata.jsonl"):
        prompt, image = ("prompt", "image") if kind == "pairs.jsonl" else ("text", "file_name")
        write_images(folder, *[f"images/{i:04d}.png" for i in numbers])
        write_lines(folder / kind, *[{prompt: prompts[i], image: f"images/{i:04d}.png"} for i in numbers])
        return folder
    for name, part in (("part-0", numbers[:half]), ("part-1", numbers[half:])):
        if kind == "parquet":
            images, texts = [png(i) for i in part], [prompts[i] for i in part]
            write_parquet(folder / f"{name}.parquet", 3, prompt=texts, image=images)
        else:
            write_tar(
                folder / f"{name}.tar",
                {n: c for i in part for n, c in ((f"{i:04d}.png", png(i)), (f"{i:04d}.txt", prompts[i]))},
            )
    return folder


KINDS = ("pairs.jsonl", "metadata.jsonl", "parquet", "tar")


def read_all(pairs: PairSet, rows_per_shard: int = 100) -> list[Pair | tuple[int, BadRow]]:
    return [row for shard in pairs.shards(rows_per_shard) for row in pairs.read(shard)]


def outcomes(location: Path | str, rows_per_shard: int = 100, **fields: str) -> list[str]:
    """For each row, its id or the reason why it is bad."""
    pairs = PairSet(location, PairFields(**fields))
    found = []
    for row in read_all(pairs, rows_per_shard):
        bad = row[1] if isinstance(row, tuple) else pairs.images([row], (4, 4))[0]
        found.append(bad.reason if isinstance(bad, BadRow) else row.sample_id)
    return found
