"""JSON files with one document: a list of objects, at the top or under a key, or an object whose keys are image names. Only a
piece of the file is in memory at a time."""

import codecs
import itertools
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from io import BufferedIOBase, BytesIO
from typing import Any

import numpy as np

from ortho_core.errors import BadRow, UserError
from ortho_core.pairs.formats.image_files import is_image
from ortho_core.pairs.formats.row_file import RowFile, in_blocks
from ortho_core.pairs.formats.text_lines import CHUNK, lines
from ortho_core.pairs.names import USUAL_IMAGES, USUAL_PROMPTS, plain, usual
from ortho_core.text.parsing import NotParsedError, checked_json, parse_json, reason_of

DECODER = json.JSONDecoder()
#: A row longer than this, in characters, means that the file is not JSON.
LONGEST_ROW = 1 << 24
#: Names of the fields of rows from an object of image names.
IMAGE_KEY, CAPTION_KEY = "file_name", "text"
#: COCO's format: images with an id, and a separate list of captions that refer to it.
ID_KEY, REFERENCE_KEY, CAPTIONS_KEY = "id", "image_id", "caption"
#: Number of first members of an object that are searched for a list of rows.
MOST_MEMBERS = 64


class JsonDocuments:
    """A `Reader` of `[{...}, ...]`, `{"data": [{...}, ...]}`, `{"0.png": "a caption", ...}` and `{"0.png": {...}, ...}`."""

    def shape(self, stream: BufferedIOBase, table: RowFile, wanted: set[str]) -> RowFile | str:
        text = _Text(stream, table, 0)
        bracket = text.peek()
        if bracket not in ("[", "{"):
            return f"it begins with {bracket!r}, not with a list of objects"
        if bracket == "{" and _is_lines(stream, table):
            return replace(table, reader=".jsonl")
        table = replace(table, form=bracket)
        try:
            if bracket == "{":
                return _shape_of_object(stream, table, wanted)
            first = next(_items(stream, table, 0), None)
        except UserError as error:
            return str(error)
        return table if first is None or isinstance(first[1], dict) else "it is a list, but not of objects"

    def starts(self, stream: BufferedIOBase, table: RowFile) -> Iterator[np.ndarray]:
        return in_blocks(offset for offset, _ in _items(stream, table, 0))

    def values(self, stream: BufferedIOBase, table: RowFile, offset: int) -> Iterator[dict[str, Any] | BadRow]:
        for _, item in _items(stream, table, offset):
            if table.form == "{":
                key, value = item
                item = {IMAGE_KEY: key, **(value if isinstance(value, dict) else {CAPTION_KEY: value})}
            if isinstance(item, dict):
                yield item
            else:
                yield BadRow("not-json", f"a JSON {type(item).__name__}, not an object")


def _shape_of_object(stream: BufferedIOBase, table: RowFile, wanted: set[str]) -> RowFile | str:
    """The table of an object of image names, or of a list of rows among its members; else a message. Raises UserError."""
    lists: dict[str, tuple[int, dict[str, Any]]] = {}
    keys: list[str] = []
    texts = True
    for key, start, value in itertools.islice(_members(stream, table), MOST_MEMBERS):
        named = not keys and is_image(key.replace("\\", "/").rpartition("/")[2])
        if named or (not keys and isinstance(value, dict) and start is None and {*map(plain, value)} & wanted):
            return table
        keys.append(key)
        several = value if isinstance(value, list) else [value]
        texts = texts and bool(several) and all(isinstance(text, str) for text in several)
        if start is None:
            continue
        lists[key] = start, value
        if _is_row(value, wanted):
            return replace(table, form="[", start=start)
    images = [start for start, item in lists.values() if ID_KEY in item and usual(item, USUAL_IMAGES)]
    captions = [start for start, item in lists.values() if REFERENCE_KEY in item and usual(item, USUAL_PROMPTS)]
    if images and captions:
        return replace(table, form="[", start=images[0], captions=captions[0])
    if texts and keys:  # the keys may be image names without suffixes, which the search for images will show
        return table
    has = ", ".join(keys)[:200]
    accepted = "image names as keys, or a list of objects with image and caption"
    return f"it is an object with {has or 'no members'}; accepted: {accepted}"


def _is_row(item: dict[str, Any], wanted: set[str]) -> bool:
    """Whether an object has a caption and an image, under a usual name or a requested one."""
    others = {*map(plain, item)} & (wanted - {*map(plain, (*USUAL_PROMPTS, *USUAL_IMAGES))})
    return len(others) + bool(usual(item, USUAL_PROMPTS)) + bool(usual(item, USUAL_IMAGES)) > 1


def _members(stream: BufferedIOBase, table: RowFile) -> Iterator[tuple[str, int | None, Any]]:
    """(key, start, value) of each member. A list of objects gives its byte offset and first object; others None and the value."""
    text = _Text(stream, table, 0)
    text.expect("{")
    if text.peek() == "}":
        return
    while True:
        key = str(text.take())
        text.expect(":")
        if text.peek() != "[":
            yield key, None, text.take()
        else:
            start = text.offset
            text.expect("[")
            items = _rest_of_list(text)
            first = list(itertools.islice(items, 1))
            if first and isinstance(first[0], dict):
                yield key, start, first[0]
                deque(items, maxlen=0)
            else:
                yield key, None, [*first, *items]
        if text.expect(",}") == "}":
            return
        text.peek()


def _rest_of_list(text: "_Text") -> Iterator[Any]:
    """The items of a list whose opening bracket was read; reads the closing bracket too."""
    while text.peek() != "]":
        yield text.take()
        if text.peek() != "]":
            text.expect(",")
    text.expect("]")


def captions_by_image(stream: BufferedIOBase, table: RowFile) -> dict[str, list[Any]]:
    """The captions of a separate list, by the image's id. All are in memory."""
    assert table.captions is not None
    captions: dict[str, list[Any]] = {}
    for _, item in _items(stream, replace(table, form="[", start=table.captions), 0):
        if isinstance(item, dict) and REFERENCE_KEY in item:
            caption = CAPTIONS_KEY if CAPTIONS_KEY in item else next(iter(usual(item, USUAL_PROMPTS)), CAPTIONS_KEY)
            captions.setdefault(str(item[REFERENCE_KEY]), []).append(item.get(caption))
    return captions


def _is_lines(stream: BufferedIOBase, table: RowFile) -> bool:
    """Whether the file is JSON lines under another suffix: the first non-blank line is a complete object, and another follows."""
    stream.seek(0)
    head = BytesIO(stream.read(CHUNK))
    filled = (line for _, line in lines(head, table.encoding) if line.strip())
    try:
        return isinstance(parse_json(next(filled, b"")), dict) and next(filled, None) is not None
    except NotParsedError:
        return False


class _Text:
    """The characters of a file from a byte offset on, read as needed."""

    def __init__(self, stream: BufferedIOBase, table: RowFile, offset: int) -> None:
        self.stream, self.table, self.offset = stream, table, offset
        self.decoder = codecs.getincrementaldecoder(table.encoding)("surrogateescape")
        self.text, self.at, self.ended = "", 0, False
        stream.seek(offset)
        if not offset and self.peek() == "\ufeff":
            self.advance(self.at + 1)

    def more(self) -> bool:
        """Read more characters; False at the end of the file."""
        if self.ended:
            return False
        content = self.stream.read(CHUNK)
        self.ended = not content
        self.text, self.at = self.text[self.at :] + self.decoder.decode(content, self.ended), 0
        return True

    def peek(self) -> str:
        """Skip white space and return the next character without reading past it; empty at the end of the file."""
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
        if to > self.at:
            passed = self.text[self.at : to]
            plain = self.table.encoding == "utf-8" and passed.isascii()
            self.offset += len(passed if plain else passed.encode(self.table.encoding, "surrogateescape"))
            self.at = to

    def take(self) -> Any:
        """Read the value that begins here. Raises UserError if there is none."""
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or len(self.text) - self.at > LONGEST_ROW or not self.more():
                    raise self.fault(reason_of(error)) from error
                continue
            if end < len(self.text) or not self.more():  # a number may continue in the next chunk
                try:
                    checked_json(value, self.text[self.at : end])
                except (ValueError, RecursionError) as error:
                    raise self.fault(reason_of(error)) from error
                self.advance(end)
                return value

    def expect(self, accepted: str) -> str:
        """Read one of these characters. Raises UserError for another one."""
        character = self.peek()
        if not character or character not in accepted:
            raise self.fault(f"found {character!r}, expected {' or '.join(map(repr, accepted))}")
        self.advance(self.at + 1)
        return character

    def fault(self, message: str) -> UserError:
        return UserError(f"{self.table.file} is not JSON from byte {self.offset} on: {message}")


def _items(stream: BufferedIOBase, table: RowFile, offset: int) -> Iterator[tuple[int, Any]]:
    """(start, item) of each item from the one at `offset` on; an item of an object is (key, value)."""
    text = _Text(stream, table, offset or table.start)
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
