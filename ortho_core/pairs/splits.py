"""Splits: parts of a set by the names of its folders or files."""

import re

#: What people call them.
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation", "heldout"),
}
_BY_NAME = {name: split for split, names in SPLITS.items() for name in names}
#: Folders: `val`, `train2017`, `test_set`, `seg_train`, `trainA`.
_FOLDER = re.compile(
    rf"(?:.*[-_])?({'|'.join(_BY_NAME)})(?:[-_ ]?(?:sets?|data|split|images?|imgs?|[0-9]+|[AB]))?", re.IGNORECASE
)


def split_named(name: str) -> str | None:
    """The split that the name of a folder says: `val` is validation."""
    match = _FOLDER.fullmatch(name)
    return _BY_NAME[match[1].lower()] if match else None


def split_of(path: str) -> str | None:
    """The split that a file belongs to: by a folder on its way, else by a word of its name (`train-00000-of-00002.parquet`)."""
    *folders, file = path.split("/")
    words = re.split(r"[^A-Za-z]+", file.rpartition(".")[0] or file)
    found = (*map(split_named, folders), *(_BY_NAME.get(word.lower()) for word in words))
    return next((split for split in found if split is not None), None)


def wanted(split: str) -> str:
    """What `--split` asks for; a name that is no usual one stands for itself."""
    return _BY_NAME.get(split.lower(), split)
