"""Splits: parts of a set by the names of its folders or files."""

import re
from collections.abc import Iterable

#: What people call them.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation", "heldout"),
}
_BY_NAME = {name: split for split, names in SPLITS.items() for name in names}


def split_named(name: str) -> str | None:
    """The split that a word names: `val` is validation."""
    return _BY_NAME.get(name.lower())


def split_of(path: str) -> str | None:
    """The split that a file belongs to: by a folder on its way, else by a word of its name (`train-00000-of-00002.parquet`)."""
    *folders, file = path.split("/")
    words = re.split(r"[^A-Za-z]+", file.rpartition(".")[0] or file)
    return next((split for word in (*folders, *words) if (split := split_named(word)) is not None), None)


def wanted(split: str) -> str:
    """What `--split` asks for; a name that is no usual one stands for itself."""
    return split_named(split) or split


def count_by_split(paths: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for path in paths:
        if (split := split_of(path)) is not None:
            counts[split] = counts.get(split, 0) + 1
    return dict(sorted(counts.items()))
