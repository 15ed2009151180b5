"""The choice of a row's prompt among its captions."""

import hashlib
from collections.abc import Iterable
from typing import Any, Literal

#: `all` makes one row per caption.
CaptionChoice = Literal["first", "longest", "random", "all"]


def texts_of(captions: Iterable[Any]) -> list[str]:
    """The captions that are not blank."""
    return [text for text in captions if isinstance(text, str) and text.strip()]


def choose(texts: list[str], choice: CaptionChoice, key: str) -> str:
    """One of the texts. A random choice depends only on `key`, so a row always keeps its caption."""
    if choice == "longest":
        return max(texts, key=len)
    if choice == "random":
        drawn = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()
        return texts[int.from_bytes(drawn, "little") % len(texts)]
    return texts[0]


def captions_in(prompt: Any) -> int:
    """Number of rows of a record if each caption is a row; a record without captions is one (bad) row."""
    return max(1, len(texts_of(prompt))) if isinstance(prompt, list | tuple) else 1


def as_captions(text: str, choice: CaptionChoice | None) -> str | list[str]:
    """A text file as one caption; if `--caption` chooses among several, as one caption per line."""
    return text if choice is None else text.splitlines()
