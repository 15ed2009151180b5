"""Receipts of the files that a finished run made: size, time of change and checksum. They show later changes of a file."""

import hashlib
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from ortho_core.errors import UserError
from ortho_core.storage.hashes import content_hash
from ortho_core.storage.local import LocalStore
from ortho_core.storage.store import NotAFile, Store, TooLarge, one_line
from ortho_core.text.parsing import NotParsedError, parse_model

REMEDY = "delete it, and the same command makes it again"
#: Bytes of the largest summary that is read. A summary lists the run's files; no run makes enough of them to exceed this.
MOST_SUMMARY_BYTES = 64 << 20


class FileReceipt(BaseModel):
    """One file, as it was written."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    #: Nanoseconds since the epoch; 0 in an object store, where an object is never changed in place.
    changed_ns: int
    #: Hexadecimal SHA-256.
    sha256: str


Receipts = Mapping[str, FileReceipt]


class _Certified(BaseModel):
    """The receipts in the summary of any finished run; empty for a run of an older version, which wrote none."""

    files: dict[str, FileReceipt] = {}


def certified(folder: Store, summary: str) -> Receipts:
    """The receipts in a finished run's summary. Raises UserError if the file is not a summary."""
    where = f"{folder.location}/{summary}"
    try:
        return parse_model(_Certified, folder.read_within(summary, MOST_SUMMARY_BYTES), where).files
    except NotParsedError as error:  # its message names the file
        raise UserError(f"{error}; {REMEDY}") from error
    except (TooLarge, OSError) as error:
        raise UserError(f"{where}: {one_line(error)}; {REMEDY}") from error


def receipt_of(folder: Store, name: str) -> FileReceipt:
    """The receipt of a file in its present state. Raises OSError."""
    return FileReceipt(bytes=folder.size(name), changed_ns=_changed_ns(folder, name), sha256=_digest(folder, name))


def fault_of(folder: Store, name: str, receipt: FileReceipt, verify: bool = False) -> str:
    """What is wrong with a file, as words that follow its name in a message; empty if nothing is.

    The content counts as unchanged if size and time are, unless `verify` is set: then the file is read and hashed.
    """
    try:
        if isinstance(folder, LocalStore):
            folder.open(name).close()  # raises NotAFile for a pipe or a folder, which have a size too
        if (size := folder.size(name)) != receipt.bytes:
            return f"has {size:,} bytes, not {receipt.bytes:,}"
        if verify:
            now = _read_through(folder, name)  # a cached hash would hide damage on the disk
        elif _changed_ns(folder, name) != receipt.changed_ns:
            now = _digest(folder, name)
        else:
            return ""
        if now != receipt.sha256:
            return "has another checksum"
    except NotAFile:
        return "is not a regular file"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return ""


def faults_of(folder: Store, made: Receipts, verify: bool = False) -> dict[str, str]:
    """What is wrong, by file name; intact files are left out."""
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
