"""Assigning one shard of a pair set: decode ahead, optimise batch after batch, give back records and failures.

Everything a worker does between reading rows and publishing a part file, without knowing who runs it.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ortho_core.assign import AssignConfig, Assigned, assign_noise
from ortho_core.assignments import Failure, noise_checksum, rebuild_noise
from ortho_core.errors import BadRow
from ortho_core.generators.base import OneStepGenerator
from ortho_core.noise import noise_seed
from ortho_core.pairs import Pair, PairSet, Shard, decode_image
from ortho_core.prompts import PromptCache


@dataclass
class ShardResult:
    """Records and failures of one shard: together, every row of it."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    truncated_prompts: int = 0
    evaluations: int = 0


@dataclass(frozen=True)
class ShardAssigner:
    """A loaded generator and the settings that its assignments are made with."""

    generator: OneStepGenerator
    prompts: PromptCache
    config: AssignConfig
    seed: int
    batch_size: int
    store_latents: bool
    model_fingerprint: str
    config_fingerprint: str

    def assign(self, pairs: PairSet, shard: Shard) -> ShardResult:
        """Assign every row of the shard; a row that cannot be used becomes a failure."""
        result = ShardResult()
        for batch, images in decoded_batches(pairs, shard, self.batch_size, self.generator.image_size, result.failures):
            self._assign_batch(batch, images, result)
        return result

    def _assign_batch(self, batch: list[Pair], images: Tensor, result: ShardResult) -> None:
        generator, config = self.generator, self.config
        prompts = [pair.prompt for pair in batch]
        seeds = [noise_seed(self.seed, pair.sample_id) for pair in batch]
        condition = self.prompts(prompts)
        images = images.to(generator.device)
        with torch.no_grad():
            targets = generator.encode_images(images)
        done = assign_noise(generator, seeds, condition, targets, images, config)
        result.truncated_prompts += generator.count_truncated(prompts)
        result.evaluations += done.evaluations * len(batch)
        skew = done.skew.cpu()
        checksums = noise_checksum(rebuild_noise(seeds, skew, config.patch_size, generator.latent_shape))
        for i, pair in enumerate(batch):
            if bool(done.failed[i]):
                result.failures.append(not_finite(pair, done, i))
                continue
            result.rows.append(
                {
                    "sample_id": pair.sample_id,
                    "prompt": pair.prompt,
                    "image": pair.image,
                    "noise_seed": seeds[i],
                    "patch_size": config.patch_size,
                    "regions": 1,
                    "skew": skew[i].numpy(),
                    "noise_checksum": float(checksums[i]),
                    "initial_loss": float(done.initial_loss[i]),
                    "loss": float(done.best.total[i]),
                    "latent_loss": float(done.best.latent[i]),
                    "pixel_l1": float(done.best.pixel[i]),
                    "drift": float(done.best.drift[i]),
                    "evaluations": done.evaluations,
                    "model_fingerprint": self.model_fingerprint,
                    "config_fingerprint": self.config_fingerprint,
                    "target_latent": targets[i].flatten().cpu().numpy() if self.store_latents else None,
                }
            )


def not_finite(pair: Pair, done: Assigned, i: int) -> Failure:
    message = (
        f"row {pair.row}: the loss was not finite at any of {len(done.history)} steps "
        f"(latent {float(done.best.latent[i]):g}, pixel {float(done.best.pixel[i]):g})"
    )
    return Failure(pair.sample_id, pair.row, "non-finite-loss", message)


def decoded_batches(
    pairs: PairSet, shard: Shard, batch_size: int, size: tuple[int, int], failures: list[Failure]
) -> Iterator[tuple[list[Pair], Tensor]]:
    """Batches of pairs with their images (B, 3, Y, X), decoded one batch ahead; bad rows go to `failures`."""
    rows = iter(pairs.read(shard))

    def next_batch() -> tuple[list[Pair], list[Tensor], list[Failure]]:
        good: list[Pair] = []
        images: list[Tensor] = []
        bad: list[Failure] = []
        while len(good) < batch_size and (row := next(rows, None)) is not None:
            try:
                if isinstance(row, tuple):
                    raise row[1]
                images.append(decode_image(row.path, size))
                good.append(row)
            except BadRow as error:
                number = row[0] if isinstance(row, tuple) else row.row
                name = f"{number:06d}" if isinstance(row, tuple) else row.sample_id
                bad.append(Failure(name, number, error.reason, str(error)))
        return good, images, bad

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(next_batch)
        while True:
            good, images, bad = ahead.result()
            failures.extend(bad)
            if not good:
                return
            ahead = pool.submit(next_batch)
            yield good, torch.stack(images)
