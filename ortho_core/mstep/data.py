"""The M-step's data: what each update's rows are made of, read on the CPU and independent of the number of workers.

Axes: B rows of one worker's share of an update, P of its preserve term, C × H × W noise, c × h × w latents, Y × X × 3 images.
"""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ortho_core.device import to_device
from ortho_core.errors import UserError
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.mstep.config import NoiseKind
from ortho_core.mstep.loss import SftBatch
from ortho_core.mstep.row_order import Order
from ortho_core.mstep.unassigned import DECODING_THREADS, UnassignedRows
from ortho_core.noise.seeded import noise_seed, seeded_normal
from ortho_core.pairs.images import decode_image
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import row_name
from ortho_core.records.assignments import Assignments
from ortho_core.records.plan import NoiseSettings

#: The fields of a share by what they are.
LISTS = ("rows", "row_names", "prompts", "preserve_prompts", "unusable")
ARRAYS = ("noise", "kept", "targets", "images", "preserve_noise", "preserve_weights")


@dataclass(frozen=True)
class Share:
    """One worker's share of an update, in host memory."""

    #: Numbers of the rows in the set.
    rows: list[int]
    #: For messages.
    row_names: list[str]
    prompts: list[str]
    noise: np.ndarray
    #: What the noise of a row is refreshed from, where it is matched while training and not all fresh.
    kept: np.ndarray | None
    #: Target latents, where they were stored; else None, and the images are there to be encoded.
    targets: np.ndarray | None
    #: (B, Y, X, 3) uint8.
    images: np.ndarray | None
    preserve_prompts: list[str]
    preserve_noise: np.ndarray | None
    #: What each row of the preserve term counts in this worker's mean, (P,) float32; see `MatchedData.micro_batches`.
    preserve_weights: np.ndarray | None = None
    #: What is wrong with rows that gave their place to others, as far as it was not told before.
    unusable: list[str] = field(default_factory=list)

    def as_row(self) -> dict[str, np.ndarray]:
        """For a table of one row: arrays with a first axis of 1, texts as JSON."""
        texts = {k: json.dumps(getattr(self, k)) for k in LISTS}
        arrays = {k: getattr(self, k) for k in ARRAYS}
        return {k: np.array([v]) for k, v in texts.items()} | {k: v[None] for k, v in arrays.items() if v is not None}

    @staticmethod
    def of_row(row: Mapping[str, np.ndarray]) -> "Share":
        """The inverse of `as_row`. The arrays are copies: those of a table may not be written to."""
        parts: dict[str, Any] = {k: json.loads(row[k][0]) for k in LISTS}
        for name in ARRAYS:
            parts[name] = row[name][0].copy() if name in row else None
        return Share(**parts)


@dataclass(frozen=True)
class MatchedData:
    """Turns the numbers of updates into shares. `noise` is the one difference between matched and direct SFT; `base`, the
    noise that each row's search began from, moves what was found at another noise to where it is drawn. `online` gives fresh
    noise, which the trainer matches, and with `keeps` the assigned noise beside it.
    """

    #: Where the rows come from: these, or those of a pair set to which no noise was assigned.
    source: Assignments | UnassignedRows
    order: Order
    latent_shape: tuple[int, int, int]
    image_size: tuple[int, int]
    noise: NoiseKind
    seed: int
    #: Where the images are; needed for a pixel term, or where no target latents were stored.
    pairs: PairSet | None = None
    needs_images: bool = False
    #: P over all workers, and the prompts it draws from; without any, those of the update's own rows.
    preserve_rows: int = 0
    preserve_prompts: tuple[str, ...] = ()
    #: Two rows of the preserve term, one after the other, have the same prompt.
    preserve_differences: bool = False
    #: Of a worker's share. The rows of the preserve term need not divide among them and the workers: where one has fewer, its
    #: share is filled up with rows of weight 0, so that all compute with equally many and every row counts as much.
    micro_batches: int = 1
    #: Of the target latents; none: as the noise map.
    target_shape: tuple[int, int, int] | None = None
    #: (C, H, W) that is taken off every assigned noise; none: nothing.
    center: np.ndarray | None = None
    keeps: bool = False

    @property
    def encodes(self) -> bool:
        """Whether targets are made from images, since none were stored."""
        return isinstance(self.source, UnassignedRows) or not self.source.plan.noise.store_latents

    @property
    def noise_settings(self) -> NoiseSettings | None:
        """How the noise of the rows was assigned, if it was."""
        return None if isinstance(self.source, UnassignedRows) else self.source.plan.noise

    def share(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> Share:
        """Read what a worker needs for one update. Raises UserError if an assignment is damaged or an image is gone."""
        index = [int(i) for i in self.order.share(epoch, step, rank, world)]
        source, targets, images = self.source, None, None
        unusable: list[str] = []
        if isinstance(source, UnassignedRows):
            before = set(source.unusable)
            read = source.read(index)
            named = [(pair.sample_id, pair.image) for pair, _ in read]
            prompts = [pair.prompt for pair, _ in read]
            images = np.stack([image for _, image in read])
            unusable = [said for row, said in source.unusable.items() if row not in before]
        else:
            rows = source.rows(index, ["sample_id", "prompt", "image"])
            named = [(row["sample_id"], row["image"]) for row in rows]
            prompts = [row["prompt"] for row in rows]
            if not self.encodes:
                targets = source.targets(index, self.target_shape or self.latent_shape).numpy()
            if self.needs_images or self.encodes:
                images = self._images(rows)
        noise, kept = self._noise(epoch, index, [name for name, _ in named])
        called = [row_name(image, name) for name, image in named]
        texts, fresh, weights = self._preserve(epoch, step, rank, world, prompts)
        return Share(index, called, prompts, noise, kept, targets, images, texts, fresh, weights, unusable)

    def _noise(self, epoch: int, index: list[int], names: list[str]) -> tuple[np.ndarray, np.ndarray | None]:
        """The noise of some rows, and what it is to be refreshed from."""
        if self.noise == "matched":
            return self._assigned(index, names), None
        if self.noise == "base":
            assert isinstance(self.source, Assignments)
            return self.source.base_noise(index, self.latent_shape).numpy(), None
        name = "match" if self.noise == "online" else "train"
        return self._drawn(name, epoch, names), self._assigned(index, names) if self.keeps else None

    def _assigned(self, index: list[int], names: list[str]) -> np.ndarray:
        """The assigned noise of some rows; without assignments each has one noise of its own, the same in every epoch."""
        if isinstance(self.source, UnassignedRows):
            return self._drawn("kept", 0, names)
        noise = self.source.noise(index, self.latent_shape).numpy()
        return noise if self.center is None else noise - self.center

    def _drawn(self, name: str, epoch: int, names: list[str]) -> np.ndarray:
        return seeded_normal([noise_seed(self.seed, name, epoch, n) for n in names], self.latent_shape).numpy()

    def _images(self, rows: list[dict[str, Any]]) -> np.ndarray:
        if self.pairs is None:
            raise UserError("training needs the images (a pixel term, or no stored latents): give --pairs")
        pairs = self.pairs

        def image(row: dict[str, Any]) -> np.ndarray:
            name, most = row["sample_id"], pairs.fields.max_image_pixels
            return decode_image(pairs.fetch_image(row["image"], name), self.image_size, name, most)

        with ThreadPoolExecutor(DECODING_THREADS) as pool:
            return np.stack(list(pool.map(image, rows)))

    def _preserve(
        self, epoch: int, step: int, rank: int, world: int, prompts: list[str]
    ) -> tuple[list[str], np.ndarray | None, np.ndarray | None]:
        """This worker's rows of the preserve term: prompts, noise that is fresh in every update, and what each counts."""
        P = self.preserve_rows
        if not P:
            return [], None, None
        parts, size = world * self.micro_batches, 2 if self.preserve_differences else 1
        U = P // size  # rows, or twos of one prompt
        most = -(-U // parts)
        # Of those of the whole update; none: what fills up. The update's rows of the same part are at hand for prompts.
        units: list[int | None] = []
        for part in range(rank * self.micro_batches, (rank + 1) * self.micro_batches):
            mine = range(-(-part * U // parts), -(-(part + 1) * U // parts))
            units += [*mine, *[None] * (most - len(mine))]
        rows = [(unit, k) for unit in units for k in range(size)]
        seeds = [noise_seed(self.seed, "preserve", epoch, step, (unit or 0) * size + k) for unit, k in rows]
        texts = [
            prompts[0] if unit is None else self._preserve_prompt(epoch, step, rank, world, unit, U, prompts)
            for unit, _ in rows
        ]
        weights = np.array([0.0 if unit is None else parts / P for unit, _ in rows], np.float32)
        return texts, seeded_normal(seeds, self.latent_shape).numpy(), weights

    def _preserve_prompt(
        self, epoch: int, step: int, rank: int, world: int, unit: int, units: int, prompts: list[str]
    ) -> str:
        if self.preserve_prompts:
            asks = unit * (2 if self.preserve_differences else 1)
            drawn = noise_seed(self.seed, "preserve-prompt", epoch, step, asks)
            return self.preserve_prompts[drawn % len(self.preserve_prompts)]
        # Spread over the update's rows, so that a worker needs the prompts of its own rows alone.
        B = self.order.batch_size
        return prompts[unit * B // units - rank * B // world]


@torch.no_grad()
def to_batch(share: Share, generator: OneStepGenerator, prompts: PromptCache, needs_images: bool) -> SftBatch:
    """A share on the generator's device: prompts embedded, and images encoded where no target latents were stored."""

    def moved(array: np.ndarray | None) -> torch.Tensor | None:
        return None if array is None else to_device(torch.from_numpy(array), generator.device)

    noise, targets, pixels, fresh, weights = map(
        moved, (share.noise, share.targets, share.images, share.preserve_noise, share.preserve_weights)
    )
    assert noise is not None
    images = None
    if pixels is not None:
        images = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    if targets is None:
        assert images is not None
        targets = generator.encode_images(images)
    B = len(share.prompts)
    condition = prompts(share.prompts + share.preserve_prompts)
    return SftBatch(
        noise,
        condition[:B],
        targets,
        images if needs_images else None,
        fresh,
        condition[B:] if fresh is not None else None,
        weights,
    )
