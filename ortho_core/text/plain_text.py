"""Text from outside, made safe to show and to store: no secrets in URLs, no control characters, always encodable."""

import re
from typing import Any

#: The replacement of a secret.
HIDDEN = "***"
#: The user of a URL, with or without a password: a token may be either.
_USER = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*:/{1,2})[^/?#\s\"'<>]*@")
#: A URL with a query or a fragment, up to a space or a mark that ends it in prose, HTML and JSON.
_QUERY = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*:/{1,2}[^\s\"'<>?#]*)([?#][^\s\"'<>`]*)")
#: A value in a query or a fragment. In HTML the `&` before it is `&amp;`.
_VALUE = re.compile(r"([?#&;][^=&#;]*=)[^&#;]+")
#: Characters that control a terminal or the direction of the text, and halves of surrogate pairs.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

#: Places with their secrets, by the place without secrets. Only in this process's memory; never written anywhere.
_given: dict[str, str] = {}


def redacted(text: str) -> str:
    """The text with `user:***` for user and password in URLs, and `***` for every value in a query or a fragment.

    Redacted text does not change.
    """
    if ":/" not in text:
        return text
    text = _USER.sub(rf"\1user:{HIDDEN}@", text)
    return _QUERY.sub(lambda url: url[1] + _VALUE.sub(rf"\1{HIDDEN}", url[2]), text)


def redacted_all(content: Any) -> Any:
    """JSON-ready content in which every text is `redacted`, also the keys of mappings."""
    if isinstance(content, str):
        return redacted(content)
    if isinstance(content, dict):
        return {redacted_all(key): redacted_all(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [redacted_all(value) for value in content]
    return content


def remember(place: str) -> None:
    """Store a place with its secrets for `as_given`: a later step may only have the stored place without them."""
    if (shown := redacted(place)) != place:
        _given[shown] = place


def as_given(place: str) -> str:
    """The place with the secrets that this process received for it; unchanged if there are none."""
    shown = place
    while shown:
        if shown in _given:
            return _given[shown] + place[len(shown) :]
        shown = shown.rpartition("/")[0]
    return place


def printable(text: str) -> str:
    """The text for a terminal: without secrets, control characters written as `\\x1b`, line breaks kept, always encodable."""
    return _CONTROLS.sub(lambda found: found[0] if found[0] == "\n" else _escaped(found[0]), redacted(text))


def encodable(text: str) -> str:
    """The text with halves of surrogate pairs escaped: file names and JSON may have them, but they cannot be written as UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def message(text: str) -> str:
    """`printable`, as one line."""
    return printable(text).replace("\n", "\\n")


def one_line(text: object, most: int = 300) -> str:
    """A text from outside, such as a library's long error, as one printable line of about `most` characters at most."""
    return printable(" ".join(str(text).split())[:most])


def _escaped(character: str) -> str:
    return (
        character.encode("unicode_escape", "surrogatepass").decode() if character < "\ud800" else ascii(character)[1:-1]
    )
