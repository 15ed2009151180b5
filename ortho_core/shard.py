"""Assigning one shard of a pair set: decode ahead, keep the engine's slots filled, give back records and failures.

Everything a worker does between reading rows and publishing a part file, without knowing who runs it.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ortho_core.assign import Engine, Found, Request, requests_of
from ortho_core.assignments import Failure, noise_checksum, rebuild_noise
from ortho_core.errors import BadRow
from ortho_core.noise import noise_seed, seeded_normal
from ortho_core.objectives import Reconstruction
from ortho_core.pairs import Pair, PairSet, Shard, decode_image
from ortho_core.prompts import PromptCache
from ortho_core.transfer import to_device


@dataclass
class ShardResult:
    """Records and failures of one shard: together, every row of it."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    truncated_prompts: int = 0
    evaluations: int = 0


@dataclass(frozen=True)
class _Key:
    """What a record needs of an image beside what was found for it."""

    pair: Pair
    target: Tensor


@dataclass(frozen=True)
class ShardAssigner:
    """An engine around a loaded generator, and the settings that its records are made with."""

    engine: Engine
    prompts: PromptCache
    seed: int
    store_latents: bool
    model_fingerprint: str
    config_fingerprint: str

    def assign(self, pairs: PairSet, shard: Shard, starts: Mapping[str, Tensor] | None = None) -> ShardResult:
        """Assign every row of the shard, in its order; a row that cannot be used becomes a failure.

        `starts` are parameters to begin with, by sample id.
        """
        result = ShardResult()
        found = sorted(self.engine.run(self._requests(pairs, shard, starts or {}, result)), key=_row_of)
        result.evaluations = sum(one.evaluations for one in found)
        sound = [one for one in found if not one.failed]
        for one in found:
            if one.failed:
                pair = one.key.pair
                message = f"row {pair.row}: {one.failure}"
                result.failures.append(Failure(pair.sample_id, pair.row, "non-finite-loss", message))
        for start in range(0, len(sound), RECORDS_AT_ONCE):
            result.rows += self._records(sound[start : start + RECORDS_AT_ONCE])
        if len(result.rows) + len(result.failures) != shard.rows:
            raise RuntimeError(
                f"shard {shard.index}: {len(result.rows)} assigned + {len(result.failures)} failed, not {shard.rows} rows"
            )
        return result

    def _requests(
        self, pairs: PairSet, shard: Shard, starts: Mapping[str, Tensor], result: ShardResult
    ) -> Iterator[Request]:
        """The shard's images as the engine takes them; encoded in batches of one size, filled up at the end."""
        engine, generator = self.engine, self.engine.generator
        objective = engine.objective
        if not isinstance(objective, Reconstruction):
            raise TypeError("a shard of pairs is assigned by reconstruction")
        size = ENCODED_AT_ONCE
        for batch, images in decoded_batches(pairs, shard, size, generator.image_size, result.failures):
            prompts = [pair.prompt for pair in batch]
            result.truncated_prompts += generator.count_truncated(prompts)
            images = to_device(torch.cat([images, images[-1:].expand(size - len(batch), -1, -1, -1)]), generator.device)
            with torch.no_grad():
                targets = generator.encode_images(images)
            yield from requests_of(
                [_Key(pair, target) for pair, target in zip(batch, targets, strict=False)],
                [noise_seed(self.seed, pair.sample_id) for pair in batch],
                objective.inputs(self.prompts(prompts), targets, images),
                [starts.get(pair.sample_id) for pair in batch],
            )

    def _records(self, found: list[Found]) -> list[dict[str, Any]]:
        engine, config = self.engine, self.engine.config
        free = config.transform == "free"
        parameters = torch.stack([one.parameters for one in found])
        seeds = [one.seed for one in found]
        shape = engine.generator.latent_shape
        if free:
            noise = engine.space.noise(seeded_normal(seeds, shape), parameters)
        else:
            noise = rebuild_noise(seeds, parameters, config.patch_size, shape, config.regions)
        checksums = noise_checksum(noise)
        records = []
        for i, one in enumerate(found):
            pair = one.key.pair
            records.append(
                {
                    "sample_id": pair.sample_id,
                    "prompt": pair.prompt,
                    "image": pair.image,
                    "noise_seed": one.seed,
                    "patch_size": config.patch_size,
                    "regions": 0 if free else config.regions,
                    "skew": None if free else parameters[i].numpy(),
                    "noise": noise[i].flatten().numpy() if free else None,
                    "noise_checksum": float(checksums[i]),
                    "initial_loss": one.initial_loss,
                    "loss": one.best("total"),
                    "latent_loss": one.best("latent"),
                    "pixel_l1": one.best("pixel"),
                    "drift": one.best("drift"),
                    "prior": one.best("prior"),
                    "evaluations": one.evaluations,
                    "model_fingerprint": self.model_fingerprint,
                    "config_fingerprint": self.config_fingerprint,
                    "target_latent": one.key.target.flatten().cpu().numpy() if self.store_latents else None,
                }
            )
        return records


#: Images that the autoencoder encodes together. Its activations are the largest of all, and nothing hangs on their number.
ENCODED_AT_ONCE = 8
#: Noise maps that are rebuilt together, in float64, to take their checksums.
RECORDS_AT_ONCE = 64


def _row_of(found: Found) -> int:
    return int(found.key.pair.row)


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
