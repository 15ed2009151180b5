"""Documents that hypothesis damages: values of other kinds, keys dropped, deep nesting, bytes turned over or cut off."""

import copy
import json
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

#: Few examples in the quick tests, and as many as a damaged folder may hold in those that take minutes. Both are always the same.
QUICK = settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
THOROUGH = settings(QUICK, max_examples=1000)

#: Values that somebody's reader did not think of. A huge number is written as digits, nesting as brackets.
ODD: list[Any] = [
    *(None, True, 0, -1, 1, 10**18, 10**200, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *(
        "",
        " ",
        "\0",
        "\n",
        "\x1b[2J",
        "\ud83d",
        "é" * 50,
        "../..",
        "a/b",
        "12",
        "'\"`|",
        "https://u:secret@h/x?sig=secret",
    ),
    *([], {}, [[]], [{}], {"": {}}, [None], {"a": [1, "b", None]}, [0] * 5, ["\udcff"], {"\ud800": 1}),
]
#: What JSON can say and Python cannot build from values.
RAW = [
    "[" * 3000,
    "[" * 90 + "]" * 90,
    '{"a":' * 1500,
    "9" * 5000,
    "-" + "9" * 400,
    "1e999",
    '{"a":1,"a":2}',
    "'",
    "NaN",
]
PLACEHOLDER = "\x01raw\x01"


@st.composite
def mutated(draw: st.DrawFn, document: Any) -> bytes:
    """The text of a JSON document with one to three mutations."""
    content = json.loads(json.dumps(document))
    raw = None
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["replace", "replace", "drop", "add", "raw", "wrap", "whole"]))
        if kind == "whole":
            content = copy.deepcopy(draw(st.sampled_from(ODD)))
            continue
        holder, key = draw(_place(content))
        if holder is None:
            continue
        if kind == "replace":
            holder[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
        elif kind == "wrap":
            holder[key] = [holder[key]]
        elif kind == "drop":
            del holder[key]
        elif kind == "add" and isinstance(holder, dict):
            holder[
                draw(st.sampled_from(["x", "", "\ud800", "kind", "format", "_class_name", "config", "__class__"]))
            ] = 1
        elif kind == "raw":
            raw, holder[key] = draw(st.sampled_from(RAW)), PLACEHOLDER
    text = json.dumps(content, ensure_ascii=draw(st.booleans()))
    if raw is not None:
        text = text.replace(json.dumps(PLACEHOLDER), raw, 1)
    return draw(damaged(text.encode("utf-8", "surrogatepass")))


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes as they are, with some turned over, cut off, or with others put in."""
    how = draw(st.sampled_from(["as it is", "as it is", "flip", "cut", "insert"]))
    if how == "as it is" or not content:
        return content
    at = draw(st.integers(0, len(content) - 1))
    if how == "cut":
        return content[:at]
    if how == "insert":
        return (
            content[:at]
            + draw(st.sampled_from([b"\xff", b"\0", b"\xef\xbb\xbf", b"[" * 2000, b"\x1b]0;x\x07", b"&a", b"\n"]))
            + content[at:]
        )
    return content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]


@st.composite
def _place(draw: st.DrawFn, content: Any) -> tuple[Any, Any]:
    """Somewhere in a document: a mapping or list, and a key or index in it; None where it has no entries."""
    holder, key = None, None
    while isinstance(content, dict | list) and content:
        holder = content
        key = draw(st.sampled_from(sorted(content) if isinstance(content, dict) else range(len(content))))
        content = content[key]
        if draw(st.integers(0, 2)) == 0:
            break
    return holder, key
