"""What the rows of a shard are searched for: how they become inputs of the objective, and what a record says of the result.

Two kinds: pairs, whose image is to be met, and prompts, whose rewards are to be raised.
"""

import time
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from ortho_core.assign import Found
from ortho_core.assignments import Failure
from ortho_core.decoding import Decode, decode_in_threads, decoded_batches, usable_rows
from ortho_core.errors import BadRow
from ortho_core.objectives import Objective, Reconstruction
from ortho_core.pairs import Pair, PairSet, Shard
from ortho_core.prompts import PromptCache
from ortho_core.rewards.objective import RewardCache, RewardObjective
from ortho_core.transfer import to_device

#: Rows that are encoded, or scored, together. Filled up where there are fewer, so that a row's numbers do not hang on the rest.
AT_ONCE = 8


@dataclass(frozen=True)
class Batch:
    """Some rows of a shard, ready to be searched: `kept` is what their records need of them, `inputs` may have more rows."""

    pairs: list[Pair]
    kept: Sequence[Any]
    inputs: Mapping[str, Tensor]


class Rows(Protocol):
    """A kind of row. Used from one thread."""

    #: Seconds in which nothing was at hand.
    waited: float

    @property
    def objective(self) -> Objective:
        """What the engine searches for."""
        ...

    def batches(self, shard: Shard, failures: list[Failure], only: Container[int] | None) -> Iterator[Batch]:
        """The usable rows of a shard in order; the others go to `failures`. `only` are the rows to look at."""
        ...

    def columns(
        self, found: Sequence[Found], pairs: Sequence[Pair], kept: Sequence[Any], noise: Tensor, base: Tensor
    ) -> Iterator[dict[str, Any]]:
        """What a record says of each row besides its noise; `noise` and `base` are (B, C, H, W)."""
        ...

    def killed(self) -> int:
        """Processes that died of a row."""
        ...


class PairRows:
    """Images to be met: what the E-step searches for."""

    def __init__(
        self,
        objective: Reconstruction,
        prompts: PromptCache,
        pairs: PairSet,
        store_latents: bool,
        decode: Decode = decode_in_threads,
    ) -> None:
        self.objective = objective
        self.prompts, self.pairs, self.store_latents, self.decode = prompts, pairs, store_latents, decode
        self.waited = 0.0

    def batches(self, shard: Shard, failures: list[Failure], only: Container[int] | None) -> Iterator[Batch]:
        generator = self.objective.generator
        batches = decoded_batches(self.pairs, shard, AT_ONCE, generator.image_size, failures, self.decode, only)
        while True:
            began = time.perf_counter()
            batch, images = next(batches, ([], torch.empty(0)))
            self.waited += time.perf_counter() - began
            if not batch:
                return
            batch, images = self._meaningful(batch, images, failures)
            if not batch:
                continue
            images = torch.cat([images, images[-1:].expand(AT_ONCE - len(batch), -1, -1, -1)])
            images = to_device(images, generator.device)
            with torch.no_grad():
                targets = generator.encode_images(images)
            condition = self.prompts([pair.prompt for pair in batch])
            without_image = [replace(pair, content=None) for pair in batch]
            kept = self.kept(images, targets)[: len(batch)]
            yield Batch(without_image, kept, self.objective.inputs(condition, targets, images))

    def kept(self, images: Tensor, targets: Tensor) -> list[Any]:
        """What the records need of images (B, 3, Y, X) and their target latents, one for each."""
        return list(targets)

    def _meaningful(self, batch: list[Pair], images: Tensor, failures: list[Failure]) -> tuple[list[Pair], Tensor]:
        """The rows without those whose prompt the generator refuses, which go to `failures`."""
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
                failures.append(Failure(pair.sample_id, pair.row, bad.reason, f"row {pair.row}: {bad}"))
        return [batch[i] for i in good], images[good]

    def columns(
        self, found: Sequence[Found], pairs: Sequence[Pair], kept: Sequence[Any], noise: Tensor, base: Tensor
    ) -> Iterator[dict[str, Any]]:
        for one, target in zip(found, kept, strict=True):
            stored = target.flatten().cpu().numpy() if self.store_latents and target is not None else None
            yield {"latent_loss": one.best("latent"), "pixel_l1": one.best("pixel"), "target_latent": stored}

    def killed(self) -> int:
        return int(getattr(self.decode, "killed", 0))


class PromptRows:
    """Prompts whose rewards are to be raised. Their records keep the latents that were found, to train on."""

    def __init__(self, objective: RewardObjective, prompts: PromptCache, rows: PairSet) -> None:
        self.objective = objective
        self.prompts, self.rows = prompts, rows
        self.encoded, self.encoded_told = RewardCache(objective.rewards), RewardCache(objective.told)
        self.waited = 0.0

    def batches(self, shard: Shard, failures: list[Failure], only: Container[int] | None) -> Iterator[Batch]:
        rows = list(usable_rows(self.rows, shard, failures, only))
        for start in range(0, len(rows), AT_ONCE):
            batch = rows[start : start + AT_ONCE]
            texts = [pair.prompt for pair in batch]
            inputs = self.objective.inputs(self.prompts(texts), self.encoded(texts))
            yield Batch(batch, [None] * len(batch), inputs)

    def columns(
        self, found: Sequence[Found], pairs: Sequence[Pair], kept: Sequence[Any], noise: Tensor, base: Tensor
    ) -> Iterator[dict[str, Any]]:
        texts = [pair.prompt for pair in pairs]
        for start in range(0, len(texts), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            before, _ = self._scores(base[part], texts[part])
            after, latents = self._scores(noise[part], texts[part])
            for i, latent in enumerate(latents):
                yield {
                    "initial_rewards": [(name, float(values[i])) for name, values in before.items()],
                    "rewards": [(name, float(values[i])) for name, values in after.items()],
                    "target_latent": latent.flatten().numpy(),
                }

    @torch.no_grad()
    def _scores(self, noise: Tensor, texts: list[str]) -> tuple[dict[str, Tensor], Tensor]:
        """Every reward of the images as a viewer sees them, and their latents; on the CPU."""
        generator, missing = self.objective.generator, AT_ONCE - len(texts)
        noise = torch.cat([noise, noise[-1:].expand(missing, -1, -1, -1)]).to(generator.device)
        filled = texts + texts[-1:] * missing
        latents = generator.denoise(noise, self.prompts(filled))
        images = generator.decode(latents).clamp(0, 1)
        scores = self.objective.told.scores(images, self.encoded_told(filled))
        return {name: values.float().cpu() for name, values in scores.items()}, latents[: len(texts)].float().cpu()

    def killed(self) -> int:
        return 0
