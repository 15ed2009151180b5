"""Lines of a text file with their byte offsets, in UTF-8 or in UTF-16, which Windows programs write."""

from collections.abc import Iterator
from io import BufferedIOBase
from typing import Literal

Encoding = Literal["utf-8", "utf-16-le", "utf-16-be"]
CHUNK = 1 << 20


def encoding_of(head: bytes) -> Encoding:
    """The encoding by the first bytes of a file. UTF-16 has a byte-order mark, or a zero in each of the first two characters."""
    if head[:2] == b"\xff\xfe" or (len(head) >= 4 and head[0] and not head[1] and head[2] and not head[3]):
        return "utf-16-le"
    if head[:2] == b"\xfe\xff" or (len(head) >= 4 and not head[0] and head[1] and not head[2] and head[3]):
        return "utf-16-be"
    return "utf-8"


def lines(stream: BufferedIOBase, encoding: Encoding, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """Each line from the one at byte `offset` on, as (offset, UTF-8 with the line end)."""
    stream.seek(offset)
    if encoding == "utf-8":
        for line in stream:
            yield offset, line
            offset += len(line)
        return
    newline, rest = "\n".encode(encoding), b""
    while chunk := stream.read(CHUNK):
        rest += chunk
        start = 0
        while (end := _aligned(rest, newline, start)) >= 0:
            yield offset + start, _as_utf8(rest[start:end], encoding)
            start = end
        offset, rest = offset + start, rest[start:]
    if rest:
        yield offset, _as_utf8(rest, encoding)


def as_text(content: bytes) -> str:
    """The content of a small file as text. Raises UnicodeDecodeError if it is neither UTF-8 nor UTF-16."""
    encoding = encoding_of(content[:4])
    return content.decode("utf-8-sig" if encoding == "utf-8" else encoding).removeprefix("\ufeff")


def _aligned(content: bytes, newline: bytes, start: int) -> int:
    """The end of the first line from `start` on; -1 if there is none. The newline's bytes must be one UTF-16 character."""
    at = content.find(newline, start)
    while at >= 0 and (at - start) % 2:
        at = content.find(newline, at + 1)
    return at + 2 if at >= 0 else -1


def _as_utf8(line: bytes, encoding: Encoding) -> bytes:
    return line.decode(encoding, "surrogatepass" if len(line) % 2 == 0 else "replace").encode("utf-8", "surrogatepass")
