"""Assigning shards of a pair set: the engine's slots are kept filled across shards, and each is given back whole.

Everything a worker does between reading rows and publishing a part file, without knowing who runs it.
"""

import queue
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ortho_core.assign import Engine, Found, Request, requests_of
from ortho_core.assignments import Failure, noise_checksum, rebuild_noise
from ortho_core.decoding import Decode, decode_in_threads, decoded_batches
from ortho_core.noise import noise_seed, seeded_normal
from ortho_core.objectives import Reconstruction
from ortho_core.pairs import Pair, PairSet, Shard
from ortho_core.prompts import PromptCache
from ortho_core.transfer import to_device


@dataclass
class ShardResult:
    """Records and failures of one shard: together, every row of it (or every row that was asked for)."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    truncated_prompts: int = 0
    evaluations: int = 0


@dataclass
class _Task:
    """One shard under way."""

    shard: Shard
    only: frozenset[int] | None
    starts: Mapping[str, Tensor]
    future: "Future[ShardResult]" = field(default_factory=Future)
    result: ShardResult = field(default_factory=ShardResult)
    found: list[Found] = field(default_factory=list)
    handed_in: int = 0
    all_handed_in: bool = False


@dataclass(frozen=True)
class _Key:
    """What a record needs of an image beside what was found for it."""

    task: _Task
    pair: Pair
    target: Tensor


@dataclass(frozen=True)
class RecordConfig:
    """What the records say and keep besides what was found."""

    seed: int
    store: str
    store_latents: bool
    model_fingerprint: str
    config_fingerprint: str


class ShardAssigner:
    """An engine around a loaded generator that works through shards as they are submitted.

    Shards that are there together share the slots: the last images of one and the first of the next are evaluated side by
    side, so no slot runs empty between them. An image's result does not depend on its company.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: PromptCache,
        pairs: PairSet,
        config: RecordConfig,
        decode: Decode = decode_in_threads,
    ) -> None:
        if not isinstance(engine.objective, Reconstruction):
            raise TypeError("a shard of pairs is assigned by reconstruction")
        self.engine, self.prompts, self.pairs, self.config, self.decode = engine, prompts, pairs, config, decode
        self.objective: Reconstruction = engine.objective
        #: Seconds in which the engine stood still because no decoded image was at hand.
        self.waited = 0.0
        self._inbox: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        self._underway: list[_Task] = []

    def submit(
        self, shard: Shard, starts: Mapping[str, Tensor] | None = None, only: frozenset[int] | None = None
    ) -> "Future[ShardResult]":
        """Ask for a shard; thread-safe. `starts` are parameters to begin with by sample id, `only` the rows to look at."""
        task = _Task(shard, only, starts or {})
        self._inbox.put(task)
        return task.future

    def assign(
        self, shard: Shard, starts: Mapping[str, Tensor] | None = None, only: frozenset[int] | None = None
    ) -> ShardResult:
        """Assign a shard in this thread; a row that cannot be used becomes a failure."""
        future = self.submit(shard, starts, only)
        self._work(self._inbox.get())
        return future.result()

    def serve(self) -> None:
        """Work on what is submitted, for ever: the target of a thread."""
        while True:
            self._work(self._inbox.get())

    def _work(self, first: _Task) -> None:
        """Assign `first` and whatever is submitted until the engine has nothing left to do."""
        self._underway = [first]
        try:
            for found in self.engine.run(self._requests(first)):
                found.key.task.found.append(found)
                self._settle(found.key.task)
        except BaseException as error:
            for task in self._underway:
                task.future.set_exception(error)
            self._underway = []

    def _requests(self, task: _Task) -> Iterator[Request | None]:
        """The images of one shard after the other; None while no further shard is there."""
        while True:
            yield from self._requests_of(task)
            task.all_handed_in = True
            self._settle(task)
            while True:
                try:
                    task = self._inbox.get_nowait()
                    break
                except queue.Empty:
                    yield None
            self._underway.append(task)

    def _requests_of(self, task: _Task) -> Iterator[Request]:
        """The shard's images as the engine takes them; encoded in batches of one size, filled up at the end."""
        generator, size = self.engine.generator, ENCODED_AT_ONCE
        batches = decoded_batches(
            self.pairs, task.shard, size, generator.image_size, task.result.failures, self.decode, task.only
        )
        while True:
            began = time.perf_counter()
            batch, images = next(batches, ([], torch.empty(0)))
            self.waited += time.perf_counter() - began
            if not batch:
                return
            prompts = [pair.prompt for pair in batch]
            task.result.truncated_prompts += generator.count_truncated(prompts)
            images = to_device(torch.cat([images, images[-1:].expand(size - len(batch), -1, -1, -1)]), generator.device)
            with torch.no_grad():
                targets = generator.encode_images(images)
            task.handed_in += len(batch)
            yield from requests_of(
                [_Key(task, replace(p, content=None), target) for p, target in zip(batch, targets, strict=False)],
                [noise_seed(self.config.seed, pair.sample_id) for pair in batch],
                self.objective.inputs(self.prompts(prompts), targets, images),
                [task.starts.get(pair.sample_id) for pair in batch],
            )

    def _settle(self, task: _Task) -> None:
        """Give a shard back once all of its images are found."""
        if not task.all_handed_in or len(task.found) < task.handed_in:
            return
        self._underway.remove(task)
        try:
            task.future.set_result(self._finish(task))
        except Exception as error:
            task.future.set_exception(error)

    def _finish(self, task: _Task) -> ShardResult:
        result, found = task.result, sorted(task.found, key=_row_of)
        result.evaluations = sum(one.evaluations for one in found)
        for one in found:
            if one.failed:
                pair = one.key.pair
                message = f"row {pair.row}: {one.failure}"
                result.failures.append(Failure(pair.sample_id, pair.row, "non-finite-loss", message))
        sound = [one for one in found if not one.failed]
        for start in range(0, len(sound), RECORDS_AT_ONCE):
            result.rows += self._records(sound[start : start + RECORDS_AT_ONCE])
        result.failures.sort(key=lambda failure: failure.row)
        expected = task.shard.rows if task.only is None else len(task.only)
        if len(result.rows) + len(result.failures) != expected:
            raise RuntimeError(
                f"shard {task.shard.index}: {len(result.rows)} assigned + {len(result.failures)} failed, not {expected} rows"
            )
        return result

    def _records(self, found: list[Found]) -> list[dict[str, Any]]:
        engine, config, keep = self.engine, self.engine.config, self.config
        free = config.transform == "free"
        parameters = torch.stack([one.parameters for one in found])
        seeds = [one.seed for one in found]
        shape = engine.generator.latent_shape
        if free:
            noise = engine.space.noise(seeded_normal(seeds, shape), parameters)
        else:
            noise = rebuild_noise(seeds, parameters, config.patch_size, shape, config.regions)
        if keep.store == "noise":
            noise = noise.half().float()  # what a reader will see, and checks
        keeps_noise = free or keep.store == "noise"
        checksums = noise_checksum(noise)
        records = []
        for i, one in enumerate(found):
            pair = one.key.pair
            kept = noise[i].flatten().numpy() if keeps_noise else None
            records.append(
                {
                    "sample_id": pair.sample_id,
                    "prompt": pair.prompt,
                    "image": pair.image,
                    "noise_seed": one.seed,
                    "patch_size": config.patch_size,
                    "regions": 0 if free else config.regions,
                    "skew": None if free else parameters[i].numpy(),
                    "noise": kept.astype("float16") if kept is not None and keep.store == "noise" else kept,
                    "noise_checksum": float(checksums[i]),
                    "initial_loss": one.initial_loss,
                    "loss": one.best("total"),
                    "latent_loss": one.best("latent"),
                    "pixel_l1": one.best("pixel"),
                    "drift": one.best("drift"),
                    "prior": one.best("prior"),
                    "evaluations": one.evaluations,
                    "model_fingerprint": keep.model_fingerprint,
                    "config_fingerprint": keep.config_fingerprint,
                    "target_latent": one.key.target.flatten().cpu().numpy() if keep.store_latents else None,
                }
            )
        return records


#: Images that the autoencoder encodes together. Its activations are the largest of all, and nothing hangs on their number.
ENCODED_AT_ONCE = 8
#: Noise maps that are rebuilt together, in float64, to take their checksums.
RECORDS_AT_ONCE = 64


def _row_of(found: Found) -> int:
    return int(found.key.pair.row)
