"""JSON, YAML and TOML from outside. Every error of their parsers becomes a `NotParsedError` with a message of one line.

The results are plain values: null, booleans, numbers, texts, lists, and mappings with texts as keys, at most `MOST_DEPTH` levels
deep. So they can be compared, shown, hashed and written again without errors. The caller decides whether text that does not
parse is a UserError, a BadRow, or ignored.
"""

import errno
import json
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ortho_core.text.plain_text import one_line

#: Largest nesting depth of lists and mappings.
MOST_DEPTH = 64
#: Largest JSON document in bytes; that of a large tokenizer has 20 million.
MOST_JSON_BYTES = 256 << 20
#: Largest YAML or TOML document in bytes. People write these, and their parsers need seconds for a megabyte.
MOST_YAML_BYTES = 256 << 10
#: Largest number of values in a YAML document with all aliases expanded, and largest number of aliases.
MOST_YAML_VALUES, MOST_YAML_ALIASES = 50_000, 1000
#: Largest number of digits of an integer; such a number still fits in a float.
MOST_DIGITS = 300

M = TypeVar("M", bound=BaseModel)

_DIGITS = re.compile(rf"[0-9]{{{MOST_DIGITS + 1}}}")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
_WIDEST = 10**MOST_DIGITS


class NotParsedError(ValueError):
    """Text that cannot be parsed. The message is one line: the place, the expected kind, the reason."""

    def __init__(self, where: str, kind: str, why: object) -> None:
        #: The reason, without the place.
        self.why = one_line(why) or type(why).__name__
        super().__init__(" ".join(filter(None, (one_line(where), kind and f"{kind}:", self.why))))


class _RefusedError(ValueError):
    """A limit that a document exceeds."""


def parse_json(content: bytes | str, where: str = "", encodable: bool = False) -> Any:
    """The value of a JSON document in UTF-8; a byte-order mark is ignored. Raises NotParsedError: `WHERE is not JSON: ...`.

    With `encodable`, texts with half of a surrogate pair are refused: they are valid JSON, but cannot be written as UTF-8.
    """
    try:
        if len(content) > MOST_JSON_BYTES:
            raise _RefusedError(f"it has {len(content)} bytes; accepted: {MOST_JSON_BYTES}")
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content.removeprefix("\ufeff")
        return checked_json(json.loads(text), text, encodable)
    # ValueError (also UnicodeDecodeError), RecursionError or MemoryError: the C scanner's error depends on Python's version.
    except Exception as error:
        raise NotParsedError(where, "is not JSON", reason_of(error)) from error


def checked_json(value: Any, text: str, encodable: bool = False) -> Any:
    """The value that Python's parser made of this text, unchanged. Raises ValueError if it exceeds the limits of this module."""
    # A text with few brackets cannot be deep, so most values need no walk.
    deep = text.count("[") + text.count("{") > MOST_DEPTH
    if deep or _DIGITS.search(text) or (encodable and _SURROGATE.search(text)):
        _check(value, encodable)
    return value


def json_object(content: bytes | str, where: str) -> dict[str, Any]:
    """The object in a JSON document; all its texts can be written as UTF-8. Raises NotParsedError."""
    value = parse_json(content, where, encodable=True)
    if not isinstance(value, dict):
        raise NotParsedError(where, "", f"holds {one_line(json.dumps(value), 60)}; accepted: a JSON object")
    return value


def json_file(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises NotParsedError, and OSError if the file cannot be read or is not a regular file."""
    return json_object(regular_bytes(file), str(file))


def regular_bytes(file: Path, most: int = MOST_JSON_BYTES) -> bytes:
    """The content of a file. Raises OSError for a file that is not regular, such as a pipe, or has more than `most` bytes."""
    status = os.stat(file)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(file))
    if status.st_size > most:
        raise OSError(errno.EFBIG, f"it has {status.st_size} bytes; accepted: {most}", str(file))
    return file.read_bytes()


def parse_yaml(content: bytes | str, where: str = "") -> Any:
    """The value of a YAML document of plain values, aliases expanded. Raises NotParsedError: `WHERE is not YAML: ...`."""
    try:
        text = _text(content)
        return _plain(yaml.load(text, _Loader), 0, [MOST_YAML_VALUES])
    # Besides YAMLError: ValueError from dates and numbers, AttributeError and TypeError from tags on values of another kind, and
    # RecursionError.
    except Exception as error:
        raise NotParsedError(where, "is not YAML", reason_of(error)) from error


def parse_toml(content: bytes | str, where: str = "") -> dict[str, Any]:
    """The tables of a TOML document. Raises NotParsedError: `WHERE is not TOML: ...`."""
    try:
        return dict(_plain(tomllib.loads(_text(content)), 0, [MOST_YAML_VALUES]))
    except Exception as error:
        raise NotParsedError(where, "is not TOML", reason_of(error)) from error


def parse_model(kind: type[M], content: bytes | str, where: str) -> M:
    """A pydantic model from a JSON document. Raises NotParsedError, which names the first entry that is wrong."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise NotParsedError(where, "is damaged", first_fault(error)) from error
    except Exception as error:  # raised by a validator
        raise NotParsedError(where, "is damaged", error) from error


def model_of(kind: type[M], content: object, where: str) -> M:
    """A pydantic model from a parsed JSON value. Raises NotParsedError, which names the first entry that is wrong."""
    return parse_model(kind, json.dumps(content), where)


def texts_of(value: Any) -> tuple[str, ...]:
    """The texts of a list of texts. Raises TypeError for anything else."""
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise TypeError(f"{shown(value)} is no list of texts")
    return tuple(value)


def first_fault(error: ValidationError, entry: str = "") -> str:
    """The first fault that pydantic found, in one line: the entry's dotted name and the fault."""
    fault = error.errors(include_url=False, include_input=False, include_context=False)[0]
    reason = str(fault["msg"]).removeprefix("Value error, ")
    return one_line(
        ": ".join(part for part in (".".join(filter(None, (entry, *map(str, fault["loc"])))), reason) if part)
    )


def shown(value: Any) -> str:
    """The first 60 characters of a value's `repr`."""
    return one_line(repr(value), 60)


def _text(content: bytes | str) -> str:
    if len(content) > MOST_YAML_BYTES:
        raise _RefusedError(f"it has {len(content)} bytes; accepted: {MOST_YAML_BYTES}")
    return content.decode("utf-8-sig") if isinstance(content, bytes) else content.removeprefix("\ufeff")


def reason_of(error: BaseException) -> str:
    """The reason that a parser's error gives, in words."""
    if isinstance(error, RecursionError):
        return f"it is nested deeper than {MOST_DEPTH} levels"
    if isinstance(error, UnicodeDecodeError):
        return f"not text in UTF-8 (byte {error.start})"
    # Remove Python's advice to programmers about numbers with many digits.
    return re.sub(r"; use sys\..*", "", str(error)) or type(error).__name__


def _check(value: Any, encodable: bool) -> None:
    """Check a value level by level. Raises ValueError for a text or number beyond the limits, RecursionError if too deep."""
    level, depth = [value], 0
    while level:
        inside: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inside += each.values()
                if encodable:
                    inside += each
            elif isinstance(each, list):
                inside += each
            elif isinstance(each, str):
                if encodable:
                    each.encode()
            elif isinstance(each, int) and not -_WIDEST < each < _WIDEST:
                raise _RefusedError(f"a whole number has more than {MOST_DIGITS} digits")
        depth += any(isinstance(each, dict | list) for each in level)
        if depth > MOST_DEPTH:
            raise RecursionError
        level = inside


def _plain(value: Any, depth: int, left: list[int]) -> Any:
    """A copy made only of plain values, without shared parts. `left` has the number of values that are still allowed."""
    left[0] -= 1
    if left[0] < 0:
        raise _RefusedError(f"it has more than {MOST_YAML_VALUES} values, aliases expanded")
    if isinstance(value, dict | list) and depth >= MOST_DEPTH:
        raise RecursionError
    if isinstance(value, dict):
        plain = {_key(key): _plain(each, depth + 1, left) for key, each in value.items()}
        if len(plain) < len(value):
            raise _RefusedError("a key appears twice")
        return plain
    if isinstance(value, list):
        return [_plain(each, depth + 1, left) for each in value]
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, int) and not -_WIDEST < value < _WIDEST:
        raise _RefusedError(f"a whole number has more than {MOST_DIGITS} digits")
    elif value is not None and not isinstance(value, bool | int | float):
        raise _RefusedError(f"it holds a {type(value).__name__}; accepted: numbers, texts, lists and mappings")
    return value


def _key(key: Any) -> str:
    if isinstance(key, str | bool | int | float) or key is None:
        return str(_plain(key, 0, [1]))
    raise _RefusedError(f"a {type(key).__name__} is a key; accepted: a text")


class _Loader(yaml.SafeLoader):
    """Loads only plain values, within the limits of this module; a date stays the text in the document."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.depth = self.aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MOST_YAML_ALIASES:
                raise _RefusedError(f"it has more than {MOST_YAML_ALIASES} aliases")
        self.depth += 1
        if self.depth > MOST_DEPTH + 1:
            raise RecursionError
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)  # `<<: [*a, *a]` expands the aliases
        if len(node.value) > MOST_YAML_VALUES:
            raise _RefusedError(f"it has more than {MOST_YAML_VALUES} values, aliases expanded")

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if len(set(keys)) < len(keys) and all(key.tag != "tag:yaml.org,2002:merge" for key, _ in node.value):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise _RefusedError(f"the key {twice!r} appears twice")
        return super().construct_mapping(node, deep)

    def number(self, node: yaml.ScalarNode) -> int | float:
        """A YAML number. Its length is limited here: `1:30:00` is a number too, and Python does not limit hexadecimal digits."""
        if len(node.value) > MOST_DIGITS:
            raise _RefusedError(f"a number has more than {MOST_DIGITS} digits")
        whole = node.tag == "tag:yaml.org,2002:int"
        return self.construct_yaml_int(node) if whole else self.construct_yaml_float(node)

    def text(self, node: yaml.ScalarNode) -> str:
        return str(self.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.text)
