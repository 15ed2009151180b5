"""Find the images that rows name by paths: the folder that paths start from, and suffixes that the rows omit."""

import errno
import itertools
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from ortho_core.pairs.formats.image_files import is_image
from ortho_core.storage.store import Store

#: Number of images of the first rows that are searched.
PROBED = 8


@dataclass(frozen=True)
class Places:
    """Converts a path in a row to a path relative to the pair set's folder."""

    #: The folder that paths start from.
    base: str = ""
    #: Suffixes that are tried if a path has no image suffix.
    suffixes: tuple[str, ...] = ()

    def path(self, root: Store, written: Any) -> Any:
        if not (self.base or self.suffixes) or not is_relative(written):
            return written
        path = f"{self.base}/{written}" if self.base else written
        if self.suffixes and not is_image(path):
            return next((path + suffix for suffix in self.suffixes if _exists(root, path + suffix)), path)
        return path


#: Paths that start from the pair set's folder and have suffixes.
AS_WRITTEN = Places()


def is_relative(path: Any) -> TypeGuard[str]:
    return isinstance(path, str) and bool(path) and not path.startswith("/") and "://" not in path


def spellings(path: str) -> list[str]:
    """A path as written, with Windows separators replaced, and in Unicode NFC and NFD (é composed and decomposed)."""
    forms = [path, path.replace("\\", "/")]
    return list(dict.fromkeys(forms + [unicodedata.normalize(form, forms[1]) for form in ("NFC", "NFD")]))


def find_places(root: Store, written: Iterable[Any], bases: Iterable[str], suffixes: Sequence[str]) -> Places | None:
    """Places with the first of `bases` in which one of the first paths is a file; for paths without suffixes, in which most are.

    None if there is no such base.
    """
    texts = (path.removeprefix(f"{root.location}/") for path in written if isinstance(path, str))
    paths = list(itertools.islice(filter(is_relative, texts), PROBED))
    bare = [path for path in paths if not is_image(path)]
    for probed, ends, needed in ((paths, (), 1), (bare, tuple(suffixes), len(bare) // 2 + 1)):
        for base in dict.fromkeys(bases):
            places = Places(base, ends)
            exist = (any(_exists(root, places.path(root, form)) for form in spellings(path)) for path in probed)
            if sum(itertools.islice(filter(None, exist), needed)) == needed:
                return places
    return None


def _exists(root: Store, path: str) -> bool:
    try:
        return root.exists(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # the column does not contain paths
            return False
        raise
