"""The M-step's data: which rows and which noise each step sees, whatever the number of workers.

Axes: B rows of one worker's share of a batch, C × H × W latents.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ortho_core.assignments import Assignments
from ortho_core.decoding import to_images
from ortho_core.errors import UserError
from ortho_core.generators.base import OneStepGenerator
from ortho_core.images import decode_image
from ortho_core.noise import noise_seed, seeded_normal
from ortho_core.pairs import PairSet
from ortho_core.prompts import PromptCache
from ortho_core.sft import SftBatch


@dataclass(frozen=True)
class Order:
    """The rows of every global batch of every epoch, decided by the seed alone; the last incomplete batch is left out."""

    rows: int
    batch_size: int
    seed: int

    @property
    def batches(self) -> int:
        return self.rows // self.batch_size

    def epoch(self, epoch: int) -> list[list[int]]:
        """The global batches of one epoch: a fresh permutation, cut up."""
        stream = np.random.Generator(np.random.Philox(key=noise_seed(self.seed, "order", epoch)))
        order = stream.permutation(self.rows)[: self.batches * self.batch_size]
        return [[int(i) for i in batch] for batch in order.reshape(self.batches, self.batch_size)]


@dataclass(frozen=True)
class MatchedData:
    """Turns row numbers into training batches. `noise` is the one difference between matched and direct SFT."""

    assignments: Assignments
    generator: OneStepGenerator
    prompts: PromptCache
    #: Where the images are; needed for a pixel term, or where no target latents were stored.
    pairs: PairSet | None
    noise: Literal["matched", "random"]
    seed: int
    needs_images: bool

    def batches(self, order: Order, epoch: int, rank: int, world: int) -> Iterator[SftBatch]:
        """This worker's share of each global batch, read one batch ahead."""
        shares = [batch[rank::world] for batch in order.epoch(epoch)]
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self._read, shares[0], epoch)
            for following in [*shares[1:], None]:
                batch = ahead.result()
                if following is not None:
                    ahead = pool.submit(self._read, following, epoch)
                yield self._on_device(*batch)

    def _read(self, index: list[int], epoch: int) -> tuple[list[str], dict[str, torch.Tensor]]:
        """Everything that needs no network, on the CPU."""
        shape = self.generator.latent_shape
        rows = self.assignments.rows(index, ["sample_id", "prompt", "image"])
        names = [row["sample_id"] for row in rows]
        tensors = {}
        if self.noise == "matched":
            tensors["noise"] = self.assignments.noise(index, shape)
        else:
            tensors["noise"] = seeded_normal([noise_seed(self.seed, "train", epoch, n) for n in names], shape)
        tensors["preserve"] = seeded_normal([noise_seed(self.seed, "preserve", epoch, n) for n in names], shape)
        if self.assignments.has_target_latents:
            tensors["targets"] = self.assignments.targets(index, shape)
        if self.needs_images or "targets" not in tensors:
            if self.pairs is None:
                raise UserError("training needs the images (a pixel term, or no stored latents): give --pairs")
            size = self.generator.image_size
            fetched = [self.pairs.fetch_image(row["image"], row["sample_id"]) for row in rows]
            tensors["images"] = to_images([decode_image(f, size, n) for f, n in zip(fetched, names, strict=True)])
        return [row["prompt"] for row in rows], tensors

    @torch.no_grad()
    def _on_device(self, prompts: list[str], tensors: dict[str, torch.Tensor]) -> SftBatch:
        tensors = {k: v.to(self.generator.device, non_blocking=True) for k, v in tensors.items()}
        condition = self.prompts(prompts)
        targets = tensors.get("targets")
        if targets is None:
            targets = self.generator.encode_images(tensors["images"])
        images = tensors.get("images") if self.needs_images else None
        return SftBatch(tensors["noise"], condition, targets, images, tensors["preserve"], condition)
