"""The samples of a tar file: members whose names are equal up to the first dot."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedIOBase

#: Bytes per read in the search for a following archive.
ZEROS_AT_ONCE = 1 << 16


@dataclass
class TarSample:
    """The members of one key by extension, each as (offset, size) of its content; `start` is its first header."""

    key: str
    start: int
    members: dict[str, tuple[int, int]] = field(default_factory=dict)


def samples(stream: BufferedIOBase, offset: int) -> Iterator[TarSample]:
    """The samples from the header at `offset` on, for files in which the members of each sample are adjacent. A repeated member
    name begins a new sample.

    A key with dots (`v1.5_001.jpg`, `v1.5_001.txt`) is distinguished from an extension with dots (`a.seg.png`): with a dotted
    key, several members agree up to the last dot. Raises OSError for a damaged file; tarfile's errors are converted to it.
    """
    sample: TarSample | None = None
    for key, extension, member in _members(stream, offset):
        middle = extension.rpartition(".")[0]
        if sample is not None and (
            sample.key != key or extension in sample.members or (middle and _middle(sample) not in ("", middle))
        ):
            yield _with_dotted_key(sample)
            sample = None
        if sample is None:
            sample = TarSample(key, member.offset)
        sample.members[extension] = member.offset_data, member.size
    if sample is not None:
        yield _with_dotted_key(sample)


def _middle(sample: TarSample) -> str:
    """The common text between key and last extension of all members; empty if they differ or if there is only one member."""
    first = next(iter(sample.members)).rpartition(".")[0]
    agree = first and all(extension.rpartition(".")[0] == first for extension in sample.members)
    return first if agree and len(sample.members) > 1 else ""


def _with_dotted_key(sample: TarSample) -> TarSample:
    if middle := _middle(sample):
        members = {extension.removeprefix(f"{middle}."): place for extension, place in sample.members.items()}
        return TarSample(f"{sample.key}.{middle}", sample.start, members)
    return sample


def gathered(stream: BufferedIOBase) -> list[TarSample]:
    """All samples of a file, with members from anywhere in it; in the order of their first members."""
    ordered: list[TarSample] = []
    latest: dict[str, TarSample] = {}
    for key, extension, member in _members(stream, 0):
        sample = latest.get(key)
        if sample is None or extension in sample.members:
            sample = latest[key] = TarSample(key, member.offset)
            ordered.append(sample)
        sample.members[extension] = member.offset_data, member.size
    return ordered


def _members(stream: BufferedIOBase, offset: int) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """(key, extension, member) of the regular files in all concatenated archives of a file. Links are ignored."""
    start: int | None = offset
    while start is not None:
        stream.seek(start)
        try:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                for member in archive:
                    # Otherwise the archive would keep every member in memory.
                    archive.members = []  # type: ignore[attr-defined]
                    folder, slash, base = member.name.removeprefix("./").rpartition("/")
                    stem, dot, extension = base.partition(".")
                    if member.isreg() and dot and stem:
                        yield folder + slash + stem, extension.lower(), member
                end = archive.offset
        except tarfile.TarError as error:
            raise OSError(str(error)) from error
        # An archive ends with zeros; the next one may follow. A damaged header looks like an end as well.
        following = _after_zeros(stream, end)
        if following == start:
            raise OSError(f"damaged header at byte {end}")
        start = following


def _after_zeros(stream: BufferedIOBase, at: int) -> int | None:
    """Offset of the first block from `at` on that is not all zeros; None if there is none."""
    stream.seek(at)
    while chunk := stream.read(ZEROS_AT_ONCE):
        if rest := chunk.lstrip(b"\0"):
            return at + (len(chunk) - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        at += len(chunk)
    return None
