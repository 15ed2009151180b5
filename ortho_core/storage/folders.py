"""Folders that appear whole or not at all, readable by whom the umask lets read."""

import os
import shutil
import stat
import uuid
from collections.abc import Callable
from pathlib import Path

from ortho_core.storage.aside import aside


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a folder beside `folder`, then put it in place of whatever is there.

    A folder cannot be swapped in one call: the old one steps aside first, so a reader sees the old, none or the new.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = aside(folder), aside(folder, "old")
    try:
        write(fresh)
        permit(fresh)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def permit(folder: Path) -> None:
    """Give the files below `folder` the permissions that a file written here has: those of libraries that write into temporary
    files of their own, safetensors' for one, only the owner may read.

    Files that have other names elsewhere are left as they are: they may be another's.
    """
    probe = folder / f".{uuid.uuid4().hex}.probe"
    probe.touch()
    usual = probe.stat().st_mode
    probe.unlink()
    for file in folder.rglob("*"):
        status = file.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_mode != usual:
            file.chmod(stat.S_IMODE(usual))


def link_tree(source: Path, target: Path) -> None:
    """Copy a finished folder by hard links, or by copying where the file system has none."""

    def link(a: str, b: str) -> str:
        try:
            os.link(a, b)
        except OSError:
            shutil.copy2(a, b)
        return b

    shutil.copytree(source, target, copy_function=link)
