"""Splits: parts of a set that are recognised by the names of folders or files."""

import re

#: Usual names of the splits.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation", "heldout"),
}
_BY_NAME = {name: split for split, names in SPLITS.items() for name in names}
#: A word of a name, as in `val`, `train2017`, `test_set`, `training set`, `seg_train`, `split=test`, `trainA`.
_WORD = re.compile(rf"({'|'.join(_BY_NAME)})(?: ?(?:sets?|data|split|images?|imgs?|[AB]))?", re.IGNORECASE)


def split_named(name: str) -> str | None:
    """The split that a word of a name means: `val` is validation. A space does not separate words: "bullet train" is no split."""
    matches = (_WORD.fullmatch(word) for word in re.split(r"[^A-Za-z ]+", name))
    return next((_BY_NAME[match[1].lower()] for match in matches if match), None)


def split_of(path: str) -> str | None:
    """The split that a file belongs to: by a folder of its path, else by its own name (`train-00000-of-00002.parquet`)."""
    *folders, file = path.split("/")
    splits = map(split_named, (*folders, file.rpartition(".")[0] or file))
    return next((split for split in splits if split is not None), None)


def wanted(split: str) -> str:
    """The split for a value of `--split`; an unusual name is returned unchanged."""
    return _BY_NAME.get(split.lower(), split)
