"""Open the folder at a path or URL."""

from pathlib import Path

from ortho_core.errors import UserError
from ortho_core.storage.local import LocalStore
from ortho_core.storage.object_store import ObjectStore
from ortho_core.storage.store import Store
from ortho_core.text.plain_text import HIDDEN, as_given, redacted, remember


def open_store(location: str | Path) -> Store:
    """The folder at a path or URL; it need not exist. Raises UserError if no installed library opens such a URL.

    A URL stored without its secrets gets them back from the full URL that this process was given.
    """
    text = as_given(str(location))
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if "://" not in text:
        return LocalStore(Path(text))
    if HIDDEN in text and redacted(text) == text:
        raise UserError(f"{text} was kept without its secrets: give the full URL again, with the same option as before")
    remember(text.rstrip("/"))
    return ObjectStore(text)


def absolute(location: str | Path) -> str:
    """The absolute form of a local path; a URL unchanged."""
    return open_store(location).location
