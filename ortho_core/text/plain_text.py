"""Text that others wrote, made fit to be shown and kept: URLs without their secrets, no control characters, always encodable."""

import re
from typing import Any

#: What stands in place of a secret.
HIDDEN = "***"
#: Who signs in at a URL, with or without a password: a token may be either.
_USER = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*:/{1,2})[^/?#\s\"'<>]*@")
#: A URL with a query or a fragment, up to a space or a mark that ends it in prose, HTML and JSON.
_QUERY = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*:/{1,2}[^\s\"'<>?#]*)([?#][^\s\"'<>`]*)")
#: A value of a query or a fragment. In HTML the `&` before it is `&amp;`.
_VALUE = re.compile(r"([?#&;][^=&#;]*=)[^&#;]+")
#: Characters that a terminal obeys, or that turn the direction of the text around them; and halves of surrogate pairs.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

#: By a place without its secrets, the place as it was given to this process. It is never written anywhere.
_given: dict[str, str] = {}


def redacted(text: str) -> str:
    """The text, of whose URLs user and password are `user:***` and every value of a query or a fragment is `***`.

    What is redacted already stays as it is.
    """
    if ":/" not in text:
        return text
    text = _USER.sub(rf"\1user:{HIDDEN}@", text)
    return _QUERY.sub(lambda url: url[1] + _VALUE.sub(rf"\1{HIDDEN}", url[2]), text)


def redacted_all(content: Any) -> Any:
    """JSON-ready content of which every text is `redacted`, those that name entries too."""
    if isinstance(content, str):
        return redacted(content)
    if isinstance(content, dict):
        return {redacted_all(key): redacted_all(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [redacted_all(value) for value in content]
    return content


def remember(place: str) -> None:
    """Keep what a place was given as, for `as_given`: what is stored of it may be all that a later step knows."""
    if (shown := redacted(place)) != place:
        _given[shown] = place


def as_given(place: str) -> str:
    """A place, with the secrets that this process was given for it; as it is where it was given none."""
    shown = place
    while shown:
        if shown in _given:
            return _given[shown] + place[len(shown) :]
        shown = shown.rpartition("/")[0]
    return place


def printable(text: str) -> str:
    """The text for a terminal: without secrets, control characters as `\\x1b`, lines kept. It can always be encoded."""
    return _CONTROLS.sub(lambda found: found[0] if found[0] == "\n" else _escaped(found[0]), redacted(text))


def encodable(text: str) -> str:
    """The text, halves of surrogate pairs escaped: names of files and JSON have them, and nothing can write them."""
    return text.encode("utf-8", "backslashreplace").decode()


def message(text: str) -> str:
    """`printable`, as one line."""
    return printable(text).replace("\n", "\\n")


def one_line(text: object, most: int = 300) -> str:
    """What is said by others as one printable line of at most `most` characters; libraries write whole paragraphs."""
    return printable(" ".join(str(text).split())[:most])


def _escaped(character: str) -> str:
    return (
        character.encode("unicode_escape", "surrogatepass").decode() if character < "\ud800" else ascii(character)[1:-1]
    )
