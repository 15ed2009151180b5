"""The samples of a tar file: members that share their name up to its first dot."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedIOBase

#: Bytes that are read at a time in search of a further archive.
ZEROS_AT_ONCE = 1 << 16


@dataclass
class TarSample:
    """The members of one key by extension, each as (offset, size) of its content; `start` is its first header."""

    key: str
    start: int
    members: dict[str, tuple[int, int]] = field(default_factory=dict)


def samples(stream: BufferedIOBase, offset: int) -> Iterator[TarSample]:
    """The samples from the header at `offset` on, where each lies in one piece. A second member of one name is of a new sample.

    Names whose keys have dots (`v1.5_001.jpg`, `v1.5_001.txt`) are told from those with dots after the key (`a.seg.png`) by
    several members that agree up to the last dot. Raises OSError, of which tarfile's errors are made, for a damaged file.
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
    """What the names of all members have between key and extension, where there are several; else nothing."""
    middles = {extension.rpartition(".")[0] for extension in sample.members}
    return middles.pop() if len(middles) == 1 and len(sample.members) > 1 else ""


def _with_dotted_key(sample: TarSample) -> TarSample:
    if middle := _middle(sample):
        members = {extension.removeprefix(f"{middle}."): place for extension, place in sample.members.items()}
        return TarSample(f"{sample.key}.{middle}", sample.start, members)
    return sample


def gathered(stream: BufferedIOBase) -> list[TarSample]:
    """All samples of a file by key, wherever their members are; in the order of their first ones."""
    found: list[TarSample] = []
    latest: dict[str, TarSample] = {}
    for key, extension, member in _members(stream, 0):
        sample = latest.get(key)
        if sample is None or extension in sample.members:
            sample = latest[key] = TarSample(key, member.offset)
            found.append(sample)
        sample.members[extension] = member.offset_data, member.size
    return found


def _members(stream: BufferedIOBase, offset: int) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Regular files with their key and extension, of all archives that the file is joined from. Links lead nowhere here."""
    start: int | None = offset
    while start is not None:
        stream.seek(start)
        try:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                for member in archive:
                    # The archive would remember every member it has seen.
                    archive.members = []  # type: ignore[attr-defined]
                    folder, slash, base = member.name.removeprefix("./").rpartition("/")
                    stem, dot, extension = base.partition(".")
                    if member.isreg() and dot and stem:
                        yield folder + slash + stem, extension.lower(), member
                end = archive.offset
        except tarfile.TarError as error:
            raise OSError(str(error)) from error
        # An archive ends with zeros. What comes after these is the next one; a damaged header looks like an end as well.
        following = _after_zeros(stream, end)
        if following == start:
            raise OSError(f"damaged header at byte {end}")
        start = following


def _after_zeros(stream: BufferedIOBase, at: int) -> int | None:
    """The first block from `at` on that is not zeros; None if there is none."""
    stream.seek(at)
    while chunk := stream.read(ZEROS_AT_ONCE):
        if rest := chunk.lstrip(b"\0"):
            return at + (len(chunk) - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        at += len(chunk)
    return None
