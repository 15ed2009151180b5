"""How the rows of a shard become inputs of the objective, and which columns their records get.

There are two kinds: pairs, whose image is the target, and prompts, whose reward is maximised (`ortho_core.rewards.rows`).
"""

import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ortho_core.at_once import AtOnce
from ortho_core.device import to_device
from ortho_core.errors import BadRow
from ortho_core.estep.engine import Found
from ortho_core.estep.objective import Objective, Reconstruction
from ortho_core.framing.frame import Size
from ortho_core.framing.framing import Framing
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.pairs.decoding import Decode, decode_in_threads, decoded_batches
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Failure, Pair, Shard

#: Rows that are encoded or scored together. Smaller batches are filled up, so that a row's numbers do not depend on the others.
ROWS_ENCODED_TOGETHER = 8


@dataclass(frozen=True)
class Batch:
    """Some rows of a shard, ready for the search. `kept` is data for their records; `inputs` may have more rows than `pairs`."""

    pairs: list[Pair]
    kept: Sequence[object]
    inputs: Mapping[str, Tensor]
    #: The size (Y, X) of their images; None: the generator's own.
    size: Size | None = None


@runtime_checkable
class Rows(Protocol):
    """A kind of row. Used from one thread."""

    #: Seconds spent waiting for rows.
    waited: float

    @property
    def objective(self) -> Objective:
        """The objective of the engine."""
        ...

    def batches(self, shard: Shard, failures: list[Failure], only: Container[int] | None) -> Iterator[Batch]:
        """The usable rows of a shard in order; the others go to `failures`. With `only`, other rows are skipped."""
        ...

    def columns(
        self, found: Sequence[Found], pairs: Sequence[Pair], kept: Sequence[Any], noise: Tensor, base: Tensor
    ) -> Iterator[dict[str, object]]:
        """The columns of each row's record besides its noise; `noise` and `base` are (B, C, H, W)."""
        ...

    def killed(self) -> int:
        """Number of processes that a row crashed."""
        ...


class PairRows:
    """Pairs: the E-step searches for the noise of their images."""

    def __init__(
        self,
        objective: Reconstruction,
        prompts: PromptCache,
        pairs: PairSet,
        store_latents: bool,
        decode: Decode = decode_in_threads,
        framing: Framing | None = None,
    ) -> None:
        """`framing`: the sizes of the images (None: the generator's own)."""
        self.objective = objective
        self.framing = framing or Framing.at(objective.generator.image_size)
        self.prompts, self.pairs, self.store_latents, self.decode = prompts, pairs, store_latents, decode
        self.at_once = AtOnce(ROWS_ENCODED_TOGETHER)
        self.waited = 0.0

    def batches(self, shard: Shard, failures: list[Failure], only: Container[int] | None) -> Iterator[Batch]:
        generator = self.objective.generator
        batches = decoded_batches(self.pairs, shard, ROWS_ENCODED_TOGETHER, self.framing, failures, self.decode, only)
        while True:
            began = time.perf_counter()
            batch, images = next(batches, ([], torch.empty(0)))
            self.waited += time.perf_counter() - began
            if not batch:
                return
            batch, images = self._meaningful(batch, images, failures)
            if not batch:
                continue
            images = torch.cat([images, images[-1:].expand(ROWS_ENCODED_TOGETHER - len(batch), -1, -1, -1)])
            images = to_device(images, generator.device)
            targets = self._encoded(images)
            frames = [pair.frame for pair in batch if pair.frame is not None]
            condition = self.prompts([pair.prompt for pair in batch]).framed([self.framing.told(f) for f in frames])
            without_image = [replace(pair, content=None) for pair in batch]
            kept = self.kept(images, targets)[: len(batch)]
            yield Batch(without_image, kept, self.objective.inputs(condition, targets, images), frames[0].size)

    @torch.no_grad()
    def _encoded(self, images: Tensor) -> Tensor:
        """E(x) of images (B, 3, Y, X), in smaller parts if memory runs out."""
        encode = self.objective.generator.encode_images
        return torch.cat(self.at_once(len(images), lambda part: encode(images[part])))

    def kept(self, images: Tensor, targets: Tensor) -> list[object]:
        """The data that each record needs, from images (B, 3, Y, X) and their target latents: one object per image."""
        return list(targets)

    def _meaningful(self, batch: list[Pair], images: Tensor, failures: list[Failure]) -> tuple[list[Pair], Tensor]:
        """The rows whose prompt the generator accepts; the others go to `failures`."""
        try:
            self.prompts([pair.prompt for pair in batch])
            return batch, images
        except BadRow:
            good = []
        for i, pair in enumerate(batch):
            try:
                self.prompts([pair.prompt])
                good.append(i)
            except BadRow as bad:
                failures.append(Failure(pair.sample_id, pair.row, bad.reason, f"row {pair.row}: {bad}", pair.image))
        return [batch[i] for i in good], images[good]

    def columns(
        self, found: Sequence[Found], pairs: Sequence[Pair], kept: Sequence[Any], noise: Tensor, base: Tensor
    ) -> Iterator[dict[str, object]]:
        for one, target in zip(found, kept, strict=True):
            stored = target.flatten().cpu().numpy() if self.store_latents and target is not None else None
            yield {"latent_loss": one.best("latent"), "pixel_l1": one.best("pixel"), "target_latent": stored}

    def killed(self) -> int:
        return int(getattr(self.decode, "killed", 0))
