"""The M-step's data: the rows of each update, read on the CPU, independent of the number of workers.

Axes: B rows of one worker's share of an update, P of its preserve rows, C × H × W noise, c × h × w latents, Y × X × 3 images.
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

#: The fields of a share that are lists, and those that are arrays.
LISTS = ("rows", "row_names", "prompts", "preserve_prompts", "unusable")
ARRAYS = ("noise", "kept", "targets", "images", "preserve_noise", "preserve_weights")


@dataclass(frozen=True)
class Share:
    """One worker's share of an update, in host memory."""

    #: Row numbers in the set.
    rows: list[int]
    #: Names of the rows for messages.
    row_names: list[str]
    prompts: list[str]
    noise: np.ndarray
    #: The noise that is mixed with fresh noise before online matching; None if the noise is all fresh or not matched online.
    kept: np.ndarray | None
    #: Stored target latents; None if none were stored: then `images` are encoded.
    targets: np.ndarray | None
    #: (B, Y, X, 3) uint8.
    images: np.ndarray | None
    preserve_prompts: list[str]
    preserve_noise: np.ndarray | None
    #: The weight of each preserve row in this worker's mean, (P,) float32; see `MatchedData.micro_batches`.
    preserve_weights: np.ndarray | None = None
    #: Messages about rows that were replaced by others; each is reported once.
    unusable: list[str] = field(default_factory=list)

    def as_row(self) -> dict[str, np.ndarray]:
        """The share as a table of one row: arrays with a first axis of 1, texts as JSON."""
        texts = {k: json.dumps(getattr(self, k)) for k in LISTS}
        arrays = {k: getattr(self, k) for k in ARRAYS}
        return {k: np.array([v]) for k, v in texts.items()} | {k: v[None] for k, v in arrays.items() if v is not None}

    @staticmethod
    def of_row(row: Mapping[str, np.ndarray]) -> "Share":
        """The inverse of `as_row`. The arrays are copies, because a table's arrays may be read-only."""
        parts: dict[str, Any] = {k: json.loads(row[k][0]) for k in LISTS}
        for name in ARRAYS:
            parts[name] = row[name][0].copy() if name in row else None
        return Share(**parts)


@dataclass(frozen=True)
class MatchedData:
    """Reads the shares of updates. Only `noise` differs between matched and direct SFT.

    `noise` is "matched" (the assigned noise), "random" (fresh noise), "base" (the base noise that each row's search started
    from) or "online" (fresh noise, which the trainer then matches; with `keeps` also the assigned noise).
    """

    #: The source of the rows: assignments, or a pair set without assigned noise.
    source: Assignments | UnassignedRows
    order: Order
    latent_shape: tuple[int, int, int]
    image_size: tuple[int, int]
    noise: NoiseKind
    seed: int
    #: The pair set with the images; needed for a pixel term, or if no target latents were stored.
    pairs: PairSet | None = None
    needs_images: bool = False
    #: Preserve rows of all workers together, and the prompts that they draw from (empty: those of the update's own rows).
    preserve_rows: int = 0
    preserve_prompts: tuple[str, ...] = ()
    #: Preserve rows 2i and 2i + 1 have the same prompt.
    preserve_differences: bool = False
    #: Micro-batches of a worker's share. The preserve rows need not divide evenly among workers and micro-batches: a part with
    #: fewer rows is filled up with rows of weight 0. So all parts have equal size and every preserve row has equal weight.
    micro_batches: int = 1
    #: Shape (c, h, w) of the target latents; None: that of the noise map.
    target_shape: tuple[int, int, int] | None = None
    #: Mean (C, H, W) that is subtracted from every assigned noise; None: no centring.
    center: np.ndarray | None = None
    keeps: bool = False

    @property
    def encodes(self) -> bool:
        """Whether targets are encoded from images because none were stored."""
        return isinstance(self.source, UnassignedRows) or not self.source.plan.noise.store_latents

    @property
    def noise_settings(self) -> NoiseSettings | None:
        """The settings of the assigned noise; None for a pair set without assigned noise."""
        return None if isinstance(self.source, UnassignedRows) else self.source.plan.noise

    def share(self, epoch: int, step: int, rank: int = 0, world: int = 1) -> Share:
        """Read a worker's share of one update. Raises UserError if an assignment is damaged or an image is missing."""
        index = [int(i) for i in self.order.share(epoch, step, rank, world)]
        source, targets, images = self.source, None, None
        unusable: list[str] = []
        if isinstance(source, UnassignedRows):
            before = set(source.unusable)
            read = source.read(index)
            named = [(pair.sample_id, pair.image) for pair, _ in read]
            prompts = [pair.prompt for pair, _ in read]
            images = np.stack([image for _, image in read])
            unusable = [message for row, message in source.unusable.items() if row not in before]
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
        """The noise of some rows, and the kept noise that is mixed with it, if any."""
        if self.noise == "matched":
            return self._assigned(index, names), None
        if self.noise == "base":
            assert isinstance(self.source, Assignments)
            return self.source.base_noise(index, self.latent_shape).numpy(), None
        name = "match" if self.noise == "online" else "train"
        return self._drawn(name, epoch, names), self._assigned(index, names) if self.keeps else None

    def _assigned(self, index: list[int], names: list[str]) -> np.ndarray:
        """The assigned noise of some rows. Without assignments each row has one random noise, the same in every epoch."""
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
        """This worker's preserve rows: their prompts, noise that is fresh in every update, and weights."""
        P = self.preserve_rows
        if not P:
            return [], None, None
        parts, size = world * self.micro_batches, 2 if self.preserve_differences else 1
        U = P // size  # units: rows, or pairs of rows with one prompt
        most = -(-U // parts)
        # Numbers of the update's units; None: a row that fills up.
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
            first_row = unit * (2 if self.preserve_differences else 1)
            drawn = noise_seed(self.seed, "preserve-prompt", epoch, step, first_row)
            return self.preserve_prompts[drawn % len(self.preserve_prompts)]
        # Spread evenly over the update's rows, so that a worker only needs the prompts of its own rows.
        B = self.order.batch_size
        return prompts[unit * B // units - rank * B // world]


@torch.no_grad()
def to_batch(share: Share, generator: OneStepGenerator, prompts: PromptCache, needs_images: bool) -> SftBatch:
    """A share on the generator's device, with encoded prompts, and with encoded images if no target latents were stored."""

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
