"""Which of a row's captions is its prompt."""

import hashlib
from collections.abc import Iterable
from typing import Any, Literal

#: `all` makes a row of each.
CaptionChoice = Literal["first", "longest", "random", "all"]


def texts_of(captions: Iterable[Any]) -> list[str]:
    """The captions that say something."""
    return [text for text in captions if isinstance(text, str) and text.strip()]


def choose(texts: list[str], choice: CaptionChoice, key: str) -> str:
    """One of them; at random by `key` alone, so that a row keeps its caption."""
    if choice == "longest":
        return max(texts, key=len)
    if choice == "random":
        drawn = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()
        return texts[int.from_bytes(drawn, "little") % len(texts)]
    return texts[0]


def captions_in(prompt: Any) -> int:
    """How many rows a record is where each caption is one; a record without a caption is one, which is bad."""
    return max(1, len(texts_of(prompt))) if isinstance(prompt, list | tuple) else 1


def as_captions(text: str, choice: CaptionChoice | None) -> str | list[str]:
    """A text file as one caption, or by its lines where a choice among them was asked for."""
    return text if choice is None else text.splitlines()
