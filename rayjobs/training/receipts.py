"""The receipts of a finished run: size, time of change and checksum of every file in its model folders, in the summary.

Each start compares sizes and times. A file with another time, such as a copy, is compared by its checksum. A lost or damaged file
is linked again from an equal file in another folder: the last epoch's folder and the final one have equal files.
"""

import os
import shutil
from pathlib import Path

from ortho_core.errors import UserError
from ortho_core.storage.aside import aside, sweep_aside
from ortho_core.storage.hashes import content_hash
from ortho_core.storage.local import LocalStore
from ortho_core.storage.receipts import FileReceipt, Receipts, fault_of, faults_of
from rayjobs.training.run_files import TRAIN_SUMMARY
from rayjobs.verb.console import say

#: The folders with receipts, and the one that must exist; the others may be deleted to save space.
FOLDERS, FINAL = "checkpoint-*", "checkpoint-final"


def receipts(out: Path) -> dict[str, FileReceipt]:
    """The receipts of all files in the run's model folders, by their path relative to `out`. Raises OSError."""
    by_name: dict[str, FileReceipt] = {}
    hashes: dict[tuple[int, int], str] = {}  # most files are hard links to those of another folder, and are hashed once
    for file in sorted(file for folder in out.glob(FOLDERS) for file in folder.rglob("*") if file.is_file()):
        status = file.stat()
        key = status.st_dev, status.st_ino
        hashes[key] = digest = hashes.get(key) or content_hash(file)
        name = file.relative_to(out).as_posix()
        by_name[name] = FileReceipt(bytes=status.st_size, changed_ns=status.st_mtime_ns, sha256=digest)
    return by_name


def check_receipts(out: Path, made: Receipts, verify: bool) -> None:
    """Replace lost or damaged files by links to equal ones. `verify` compares every checksum, also if size and time are equal.

    Raises UserError for the first file that cannot be replaced, with the remedy.
    """
    gone = {name for name in {file.partition("/")[0] for file in made} if name != FINAL and not (out / name).exists()}
    kept = {file: receipt for file, receipt in made.items() if file.partition("/")[0] not in gone}
    folder = LocalStore(out)
    damaged = faults_of(folder, kept, verify)
    for file, fault in damaged.items():
        equal = next(
            (
                other
                for other, receipt in kept.items()
                if other not in damaged
                and receipt.sha256 == made[file].sha256
                and not fault_of(folder, other, receipt, verify=True)
            ),
            None,
        )
        if equal is None:
            raise UserError(
                f"{out / file} {fault}, and is not what the finished run wrote: put it back from a copy, or delete "
                f"{out / TRAIN_SUMMARY}, and the same command trains again from the start"
            )
        _link(out / equal, out / file)
        say(f"{out / file} {fault}: linked again from {equal}")
    if verify:
        say(f"{len(kept)} files in {out} have the checksums they were written with")


def _link(source: Path, target: Path) -> None:
    fresh = aside(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep_aside(target.parent)
    if target.is_dir():
        shutil.rmtree(target)
    try:
        os.link(source, fresh)
    except OSError:
        shutil.copy2(source, fresh)
    os.replace(fresh, target)
