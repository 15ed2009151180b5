"""Write folders that appear whole or not at all, with the permissions that the umask allows."""

import os
import shutil
import stat
import uuid
from collections.abc import Callable
from pathlib import Path

from ortho_core.storage.aside import aside


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary folder beside `folder`, then replace `folder` by it.

    Folders cannot be swapped in one call: the old one is renamed first, so a reader sees the old folder, none, or the new one.
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
    """Give the files below `folder` the permissions of a file written normally. Some libraries, for example safetensors, write
    through temporary files that only the owner may read.

    Files with further hard links are left unchanged: they may belong to another folder.
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
    """Copy a finished folder by hard links, or file by file if the file system has none."""

    def link(a: str, b: str) -> str:
        try:
            os.link(a, b)
        except OSError:
            shutil.copy2(a, b)
        return b

    shutil.copytree(source, target, copy_function=link)
