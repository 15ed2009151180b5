"""Splits: parts of a set by the names of its folders or files."""

import re

#: What people call them.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation", "heldout"),
}
_BY_NAME = {name: split for split, names in SPLITS.items() for name in names}
#: A word of a name, as in `val`, `train2017`, `test_set`, `training set`, `seg_train`, `split=test`, `trainA`.
_WORD = re.compile(rf"({'|'.join(_BY_NAME)})(?: ?(?:sets?|data|split|images?|imgs?|[AB]))?", re.IGNORECASE)


def split_named(name: str) -> str | None:
    """The split that a word of a name says: `val` is validation. A blank parts no words: a bullet train is none."""
    found = (_WORD.fullmatch(word) for word in re.split(r"[^A-Za-z ]+", name))
    return next((_BY_NAME[match[1].lower()] for match in found if match), None)


def split_of(path: str) -> str | None:
    """The split that a file belongs to: by a folder on its way, else by its own name (`train-00000-of-00002.parquet`)."""
    *folders, file = path.split("/")
    found = map(split_named, (*folders, file.rpartition(".")[0] or file))
    return next((split for split in found if split is not None), None)


def wanted(split: str) -> str:
    """What `--split` asks for; a name that is no usual one stands for itself."""
    return _BY_NAME.get(split.lower(), split)
