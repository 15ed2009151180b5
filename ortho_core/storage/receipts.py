"""What a finished run says of a file that it made: size, time of change and checksum. By them it is known again, or not."""

import hashlib
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from ortho_core.errors import UserError
from ortho_core.storage.hashes import content_hash
from ortho_core.storage.local import LocalStore
from ortho_core.storage.store import NotAFile, Store, TooLarge, one_line
from ortho_core.text.parsing import NotParsedError, parse_model

REMEDY = "delete it, and the same command makes it again"
#: A summary lists its files, and no run makes so many.
MOST_SUMMARY_BYTES = 64 << 20


class FileReceipt(BaseModel):
    """One file, as it was written."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    #: Nanoseconds since the epoch; 0 in an object store, where a file does not change under its name.
    changed_ns: int
    #: Hexadecimal SHA-256.
    sha256: str


Receipts = Mapping[str, FileReceipt]


class _Certified(BaseModel):
    """What the summary of any finished run says of the files it made; nothing of a run from before it did."""

    files: dict[str, FileReceipt] = {}


def certified(folder: Store, summary: str) -> Receipts:
    """The receipts in a finished run's summary. Raises UserError for what is no summary."""
    where = f"{folder.location}/{summary}"
    try:
        return parse_model(_Certified, folder.read_within(summary, MOST_SUMMARY_BYTES), where).files
    except NotParsedError as error:  # names the file
        raise UserError(f"{error}; {REMEDY}") from error
    except (TooLarge, OSError) as error:
        raise UserError(f"{where}: {one_line(error)}; {REMEDY}") from error


def receipt_of(folder: Store, name: str) -> FileReceipt:
    """Of a file as it is now. Raises OSError."""
    return FileReceipt(bytes=folder.size(name), changed_ns=_changed_ns(folder, name), sha256=_digest(folder, name))


def fault_of(folder: Store, name: str, receipt: FileReceipt, verify: bool = False) -> str:
    """What is wrong with a file, to be said after its name; empty: nothing.

    Of a file whose size and time are as they were the content is taken for what it was, unless `verify`.
    """
    try:
        if isinstance(folder, LocalStore):
            folder.open(name).close()  # a pipe or a folder in its place has a size, too
        if (size := folder.size(name)) != receipt.bytes:
            return f"has {size:,} bytes, not {receipt.bytes:,}"
        if verify:
            now = _read_through(folder, name)  # what is remembered of a file would hide what the disk did to it
        elif _changed_ns(folder, name) != receipt.changed_ns:
            now = _digest(folder, name)
        else:
            return ""
        if now != receipt.sha256:
            return "has another checksum"
    except NotAFile:
        return "is no file"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return ""


def faults_of(folder: Store, made: Receipts, verify: bool = False) -> dict[str, str]:
    """What is wrong, by file."""
    return {name: fault for name, receipt in made.items() if (fault := fault_of(folder, name, receipt, verify))}


def _changed_ns(folder: Store, name: str) -> int:
    return (folder.path / name).stat().st_mtime_ns if isinstance(folder, LocalStore) else 0


def _digest(folder: Store, name: str) -> str:
    if isinstance(folder, LocalStore):
        return content_hash(folder.path / name)
    return _read_through(folder, name)


def _read_through(folder: Store, name: str) -> str:
    with folder.open(name) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
