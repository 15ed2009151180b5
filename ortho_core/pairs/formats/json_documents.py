"""JSON files of one document: a list of objects, or an object of image names. A piece at a time is in memory."""

import codecs
import json
from collections.abc import Iterator
from dataclasses import replace
from io import BufferedIOBase, BytesIO
from pathlib import PurePosixPath
from typing import Any

from ortho_core.errors import BadRow, UserError
from ortho_core.pairs.formats.row_file import RowFile
from ortho_core.pairs.formats.text_lines import CHUNK, lines
from ortho_core.pairs.images import SUFFIXES

DECODER = json.JSONDecoder()
#: A row beyond this is taken for a file that is not JSON.
LONGEST_ROW = 1 << 24
#: What rows of an object of image names are called.
IMAGE_KEY, CAPTION_KEY = "file_name", "text"


class JsonDocuments:
    """A `Reader` of `[{...}, ...]`, of `{"0.png": "a caption", ...}` and of `{"0.png": {...}, ...}`."""

    def shape(self, stream: BufferedIOBase, table: RowFile, wanted: set[str]) -> RowFile | str:
        text = _Text(stream, table, 0)
        bracket = text.peek()
        if bracket not in ("[", "{"):
            return f"it begins with {bracket!r}, not with a list of objects"
        if bracket == "{" and _is_lines(stream, table):
            return replace(table, reader=".jsonl")
        table = replace(table, form=bracket)
        try:
            first = next(_items(stream, table, 0), None)
        except UserError as error:
            return str(error)
        if bracket == "[":
            return table if first is None or isinstance(first[1], dict) else "it is a list, but not of objects"
        key, value = first[1] if first is not None else ("", None)
        if PurePosixPath(key.replace("\\", "/")).suffix.lower() in SUFFIXES and isinstance(value, str | list | dict):
            return table
        return f"it is an object whose first key is {key[:60]!r}, not a list of objects nor an object of image names"

    def starts(self, stream: BufferedIOBase, table: RowFile) -> Iterator[int]:
        for offset, _ in _items(stream, table, 0):
            yield offset

    def values(self, stream: BufferedIOBase, table: RowFile, offset: int) -> Iterator[dict[str, Any] | BadRow]:
        for _, item in _items(stream, table, offset):
            if table.form == "{":
                key, value = item
                item = {IMAGE_KEY: key, **(value if isinstance(value, dict) else {CAPTION_KEY: value})}
            if isinstance(item, dict):
                yield item
            else:
                yield BadRow("not-json", f"a JSON {type(item).__name__}, not an object")


def _is_lines(stream: BufferedIOBase, table: RowFile) -> bool:
    """Whether the first line that is not blank is an object by itself and not the last one: JSON lines under another name."""
    stream.seek(0)
    head = BytesIO(stream.read(CHUNK))
    filled = (line for _, line in lines(head, table.encoding) if line.strip())
    try:
        return isinstance(json.loads(next(filled, b"").decode("utf-8-sig")), dict) and next(filled, None) is not None
    except (ValueError, RecursionError):
        return False


class _Text:
    """The characters of a file from a byte on, as many as are needed."""

    def __init__(self, stream: BufferedIOBase, table: RowFile, offset: int) -> None:
        self.stream, self.table, self.offset = stream, table, offset
        self.decoder = codecs.getincrementaldecoder(table.encoding)("surrogateescape")
        self.text, self.at, self.ended = "", 0, False
        stream.seek(offset)
        if not offset and self.peek() == "\ufeff":
            self.advance(self.at + 1)

    def more(self) -> bool:
        """Read on; False at the end of the file."""
        if self.ended:
            return False
        content = self.stream.read(CHUNK)
        self.ended = not content
        self.text, self.at = self.text[self.at :] + self.decoder.decode(content, self.ended), 0
        return True

    def peek(self) -> str:
        """The next character that is no space, where the text now stands; empty at the end of the file."""
        while True:
            at = self.at
            while at < len(self.text) and self.text[at] in " \t\r\n":
                at += 1
            self.advance(at)
            if at < len(self.text):
                return self.text[at]
            if not self.more():
                return ""

    def advance(self, to: int) -> None:
        self.offset += len(self.text[self.at : to].encode(self.table.encoding, "surrogateescape"))
        self.at = to

    def take(self) -> Any:
        """The value that begins here. Raises UserError if there is none."""
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or len(self.text) - self.at > LONGEST_ROW or not self.more():
                    raise self.fault(str(error)) from error
                continue
            if end < len(self.text) or not self.more():  # a number may go on
                self.advance(end)
                return value

    def expect(self, accepted: str) -> str:
        """Take one of these characters."""
        found = self.peek()
        if not found or found not in accepted:
            raise self.fault(f"{found!r} where {' or '.join(map(repr, accepted))} is expected")
        self.advance(self.at + 1)
        return found

    def fault(self, message: str) -> UserError:
        return UserError(f"{self.table.file} is not JSON from byte {self.offset} on: {message}")


def _items(stream: BufferedIOBase, table: RowFile, offset: int) -> Iterator[tuple[int, Any]]:
    """Every item from the one at `offset` on: where it starts, and the value, of an object (key, value)."""
    text = _Text(stream, table, offset)
    close = "]" if table.form == "[" else "}"
    if not offset:
        text.expect(table.form)
        if text.peek() == close:
            return
    while True:
        text.peek()
        start = text.offset
        item = text.take()
        if table.form == "{":
            text.expect(":")
            text.peek()
            item = (str(item), text.take())
        yield start, item
        if text.expect("," + close) == close:
            return
