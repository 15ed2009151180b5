"""The data sets of the study: what base model each has, what it is to learn, and who judges.

Each is real images that the base model learned from, and the same kind of images in a leaning, bold hand
(`models.recipes.leaning`), of the test split, that it never saw: some to fine-tune on, others held out. Neither has any of the
last two classes: what a model does at their prompts is what fine-tuning did where nobody asked for it.

Axes: n images, c × Y × X pixels.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.study.classifier import train_classifier
from models.recipes.digits import COLOURS, ColouredDigits, caption
from models.recipes.leaning import write_coloured, write_leaning
from ortho_core.pairs.known_sets import KNOWN, Labelled, open_split
from rayjobs.train_gan import job as train_gan
from rayjobs.train_gan.config import TrainGanJob

#: Pairs of one seed to fine-tune on, and pairs that all seeds are judged on.
PAIRS, HELDOUT = 256, 512
#: Seeds that may have pairs of their own.
SEEDS = 8
#: Classes that pairs are of, from the first.
SEEN = 8


@dataclass(frozen=True)
class Laboratory:
    """A labelled set that `ortho train-gan` knows by name."""

    #: Its name there.
    data: str
    #: The raw set.
    root: Path
    #: Everything that is made of it.
    work: Path
    #: Options of train-gan, beside those of the set.
    generator: Mapping[str, Any] = field(default_factory=dict)
    classifier_epochs: int = 2
    #: Held-out pairs that models are judged on, at most `HELDOUT`.
    judged: int = HELDOUT
    #: The measures of `benchmarks.study.style` that tell the hand.
    hand: tuple[str, ...] = ("slant", "ink")

    def base(self) -> Path:
        """The model folder that fine-tuning starts from; trained where it is not there."""
        out = self.work / "base"
        train_gan.run(TrainGanJob(data=self.data, root=str(self.root), out=out, **self.generator))
        return out / "checkpoint-final"

    def judge(self) -> Path:
        """A classifier of the real images, as a folder for `--features`; trained where it is not there."""
        folder = self.work / "classifier"
        if not folder.is_dir():
            train_classifier(*self.real("train"), self.real("test"), self.classifier_epochs, folder)
        return folder

    def real(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Images (n, c, Y, X) uint8 and class numbers (n,)."""
        pairs, known = open_split(str(self.root), "test" if split == "test" else "train"), KNOWN[self.data]
        images, kept = Labelled.of(pairs, known.classes).images(pairs, known.image_shape)
        return images, kept.labels

    def heldout(self) -> Path:
        return self._targets("heldout", 0, HELDOUT)

    def pairs(self, seed: int) -> Path:
        """Each seed's own pairs."""
        return self._targets(f"pairs-{seed}", HELDOUT + seed * PAIRS, PAIRS)

    def more(self, rows: int) -> Path:
        """So many other held-out pairs, which no seed trains on."""
        return self._targets(f"more-{rows}", HELDOUT + SEEDS * PAIRS, rows)

    def other_prompts(self) -> list[str]:
        """Prompts that no pair has, for drift to be measured at: of the last class."""
        return [KNOWN[self.data].classes[-1]]

    def preserve_prompts(self) -> Path:
        """A file of prompts that no pair has, for models to be held at: of the classes between."""
        return self._prompts(list(KNOWN[self.data].classes[SEEN:-1]))

    def _prompts(self, prompts: list[str]) -> Path:
        out = self.work / "preserve-prompts.txt"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(f"{prompt}\n" for prompt in prompts))
        return out

    def _targets(self, name: str, first: int, rows: int) -> Path:
        out = self.work / "targets" / f"{name}.parquet"
        if not out.is_file():
            self.write(first, rows, out)
        return out

    def write(self, first: int, rows: int, out: Path) -> None:
        write_leaning(self.data, str(self.root), "test", first, rows, out, classes=SEEN)


@dataclass(frozen=True)
class ColouredLaboratory(Laboratory):
    """MNIST in colour, which the text-to-image pipeline that ships learned from."""

    def base(self) -> Path:
        return Path("models/tiny-turbo")

    def real(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Every caption is a class of its own, so that the features tell colours too."""
        digits = ColouredDigits(self.root, {"train": "train", "test": "t10k"}[split], seed=3)
        images, captions, _, _ = digits.draw({"train": 40_000, "test": 5_000}[split])
        number = {caption: i for i, caption in enumerate(sorted(set(captions)))}
        return images.mul(255).round().byte().numpy(), np.array([number[caption] for caption in captions])

    def other_prompts(self) -> list[str]:
        return [caption(9, *colour) for colour in COLOURS]

    def preserve_prompts(self) -> Path:
        return self._prompts([caption(digit, *colour) for digit in range(SEEN, 9) for colour in COLOURS])

    def write(self, first: int, rows: int, out: Path) -> None:
        write_coloured(self.root, first, rows, out, classes=SEEN)


def study_parser(doc: str | None) -> argparse.ArgumentParser:
    """What every program of the study is told: the set, where it is, where the work goes, the seeds."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--data", choices=[*KNOWN, "tiny-turbo"], required=True)
    parser.add_argument("--root", type=Path, required=True, help="folder of the real images (tiny-turbo: of MNIST)")
    parser.add_argument("--work", type=Path, default=Path("runs/study"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    return parser


def laboratory(args: argparse.Namespace) -> Laboratory:
    """The set that the arguments of `study_parser` name."""
    torch.set_num_threads(1)
    name, root, work = args.data, args.root.absolute(), args.work.absolute() / args.data
    if name == "tiny-turbo":
        return ColouredLaboratory("mnist", root, work, classifier_epochs=4, judged=256)
    if name == "cifar10":
        return Laboratory(name, root, work, {"widths": (64, 64, 32), "epochs": 4}, 12, hand=("slant", "brightness"))
    return Laboratory(name, root, work)
