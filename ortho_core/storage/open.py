"""Open the folder at a path or URL."""

from pathlib import Path

from ortho_core.storage.local import LocalStore
from ortho_core.storage.object_store import ObjectStore
from ortho_core.storage.store import Store


def open_store(location: str | Path) -> Store:
    """The folder at a path or URL; it need not exist. Raises UserError if nothing here opens such a URL."""
    text = str(location)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    return ObjectStore(text) if "://" in text else LocalStore(Path(text))


def absolute(location: str | Path) -> str:
    """A local path made absolute, a URL as it is."""
    return open_store(location).location
