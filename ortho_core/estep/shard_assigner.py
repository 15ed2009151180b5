"""Assigns shards of rows. The engine's slots stay filled across shards; each shard's result is returned complete.

This is a worker's task between reading rows and publishing a part file, independent of Ray.
"""

import itertools
import queue
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from ortho_core.estep.engine import Found
from ortho_core.estep.engines import Engines
from ortho_core.estep.queue import Request, requests_of
from ortho_core.estep.rows import Rows
from ortho_core.framing.frame import Frame, Size
from ortho_core.framing.image_size import text_of
from ortho_core.noise.seeded import noise_seed, seeded_normal
from ortho_core.pairs.rows import Failure, Pair, Shard, row_name
from ortho_core.records.assignments import Start, noise_checksum, rebuild_noise
from ortho_core.records.parts import FRAME_COLUMNS, ShardResult


@dataclass
class _Task:
    """One shard under way."""

    shard: Shard
    only: frozenset[int] | None
    starts: Mapping[str, Start]
    future: "Future[ShardResult]" = field(default_factory=Future)
    result: ShardResult = field(default_factory=ShardResult)
    found: list[Found] = field(default_factory=list)
    handed_in: int = 0
    all_handed_in: bool = False
    #: Its number among the shards of this worker, as they came.
    turn: int = 0


@dataclass(frozen=True)
class _Key:
    """The data of a row that its record needs besides the search's result."""

    task: _Task
    pair: Pair
    kept: object


@dataclass(frozen=True)
class RecordConfig:
    """Settings of the records that do not come from the search."""

    seed: int
    store: str
    model_fingerprint: str
    config_fingerprint: str
    #: Whether the records of a shard are in the order of the sizes of their images, as training needs them; else in that of the
    #: rows.
    by_size: bool = True


class ShardAssigner:
    """Engines around a loaded generator that assign shards as they are submitted.

    Waiting shards share the slots: the last rows of one shard and the first rows of the next are evaluated together, so no
    slot is empty between them. A row's result does not depend on the other rows.
    """

    def __init__(self, engines: Engines, rows: Rows, config: RecordConfig) -> None:
        if engines.objective is not rows.objective:
            raise ValueError("the engines' objective is not the objective of the rows")
        self.engines, self.rows, self.config = engines, rows, config
        self._turns = itertools.count()
        self._inbox: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        self._underway: list[_Task] = []

    def submit(
        self, shard: Shard, starts: Mapping[str, Start] | None = None, only: frozenset[int] | None = None
    ) -> "Future[ShardResult]":
        """Queue a shard; thread-safe. `starts` are the starting points by sample id. With `only`, other rows are skipped."""
        task = _Task(shard, only, starts or {})
        self._inbox.put(task)
        return task.future

    def assign(
        self, shard: Shard, starts: Mapping[str, Start] | None = None, only: frozenset[int] | None = None
    ) -> ShardResult:
        """Assign a shard in this thread; a row that cannot be used becomes a failure."""
        future = self.submit(shard, starts, only)
        self._work(self._inbox.get())
        return future.result()

    def serve(self) -> None:
        """Assign submitted shards in an endless loop: the target of a thread."""
        while True:
            self._work(self._inbox.get())

    def _work(self, first: _Task) -> None:
        """Assign `first`, and every shard that is submitted before the engine runs out of images."""
        self._underway = [first]
        try:
            for found in self.engines.run(self._requests(first)):
                found.key.task.found.append(found)
                self._settle(found.key.task)
        except BaseException as error:
            for task in self._underway:
                task.future.set_exception(error)
            self._underway = []

    def _requests(self, task: _Task) -> Iterator[Request | None]:
        """The images of one shard after the other; None while no further shard is submitted."""
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
        """The shard's rows as requests for the engine."""
        generator, task.turn = self.engines.generator, next(self._turns)
        for batch in self.rows.batches(task.shard, task.result.failures, task.only):
            task.result.truncated_prompts += generator.count_truncated([pair.prompt for pair in batch.pairs])
            task.handed_in += len(batch.pairs)
            starts = [task.starts.get(pair.sample_id) for pair in batch.pairs]
            seeds = [noise_seed(self.config.seed, pair.sample_id) for pair in batch.pairs]
            yield from requests_of(
                [_Key(task, pair, kept) for pair, kept in zip(batch.pairs, batch.kept, strict=True)],
                [seed if start is None else start.seed for seed, start in zip(seeds, starts, strict=True)],
                batch.inputs,
                [start and start.parameters for start in starts],
                size=batch.size,
                turn=task.turn,
            )

    def _settle(self, task: _Task) -> None:
        """Return a shard's result once all of its images are assigned."""
        if not task.all_handed_in or len(task.found) < task.handed_in:
            return
        self._underway.remove(task)
        try:
            task.future.set_result(self._finish(task))
        except Exception as error:
            task.future.set_exception(error)

    def _finish(self, task: _Task) -> ShardResult:
        result, found = task.result, sorted(task.found, key=self._order_of)
        result.loaded_fingerprint = self.engines.generator.loaded_fingerprint
        result.evaluations = sum(one.evaluations for one in found)
        result.candidate_forwards = sum(one.candidate_forwards for one in found)
        for one in found:
            if one.failed:
                pair = one.key.pair
                message = f"row {pair.row}: {row_name(pair.image, pair.sample_id)}: {one.failure}"
                result.failures.append(Failure(pair.sample_id, pair.row, "non-finite-loss", message, pair.image))
        sound = [one for one in found if not one.failed]
        for size, group in itertools.groupby(sound, key=self._size_of):
            same = list(group)
            for start in range(0, len(same), RECORDS_AT_ONCE):
                result.rows += self._records(same[start : start + RECORDS_AT_ONCE], size)
            if len(self.engines.sizes) > 1 and self.config.by_size:
                result.sizes += ((text_of(size), len(same)),)
        if not self.config.by_size:
            order = sorted(range(len(sound)), key=lambda k: int(sound[k].key.pair.row))
            result.rows = [result.rows[k] for k in order]
        result.failures.sort(key=lambda failure: failure.row)
        expected = task.shard.rows if task.only is None else len(task.only)
        if len(result.rows) + len(result.failures) != expected:
            raise RuntimeError(
                f"shard {task.shard.index}: {len(result.rows)} assigned + {len(result.failures)} failed, not {expected} rows"
            )
        return result

    def _size_of(self, found: Found) -> Size:
        frame: Frame | None = found.key.pair.frame
        return self.engines.generator.image_size if frame is None else frame.size

    def _order_of(self, found: Found) -> tuple[int, int]:
        """The records of a part are in the order of the sizes, and those of one size in the order of the rows."""
        return self.engines.sizes.index(self._size_of(found)), int(found.key.pair.row)

    def _records(self, found: list[Found], size: Size) -> list[dict[str, object]]:
        """The records of some rows of one size."""
        engine, config, keep = self.engines.of(size), self.engines.config, self.config
        free = config.transform == "free"
        parameters = torch.stack([one.parameters for one in found])
        seeds = [one.seed for one in found]
        shape = engine.generator.latent_shape
        if free:
            noise = engine.space.noise(seeded_normal(seeds, shape), parameters)
        else:
            noise = rebuild_noise(seeds, parameters, config.patch_size, shape, config.regions)
        if keep.store == "noise":
            noise = noise.half().float()  # as a reader of the record gets it; the checksum is of these values
        keeps_noise = free or keep.store == "noise"
        checksums = noise_checksum(noise)
        pairs = [one.key.pair for one in found]
        columns = self.rows.columns(found, pairs, [one.key.kept for one in found], noise, seeded_normal(seeds, shape))
        records = []
        for i, (one, pair, row_columns) in enumerate(zip(found, pairs, columns, strict=True)):
            kept = noise[i].flatten().numpy() if keeps_noise else None
            records.append(
                {
                    "sample_id": pair.sample_id,
                    "prompt": pair.prompt,
                    "image": pair.image,
                    "pixels": pair.pixels,
                    "noise_seed": one.seed,
                    "patch_size": config.patch_size,
                    "regions": 0 if free else config.regions,
                    **dict(zip(FRAME_COLUMNS, pair.frame or Frame.plain(size), strict=True)),
                    "skew": None if free else parameters[i].numpy(),
                    "noise": kept.astype("float16") if kept is not None and keep.store == "noise" else kept,
                    "noise_checksum": float(checksums[i]),
                    "initial_loss": one.initial_loss,
                    "loss": one.best("total"),
                    "drift": one.best("drift"),
                    "prior": one.best("prior"),
                    "evaluations": one.evaluations,
                    "model_fingerprint": keep.model_fingerprint,
                    "config_fingerprint": keep.config_fingerprint,
                    **row_columns,
                }
            )
        return records


#: Noise maps that are rebuilt together, in float64, for their checksums.
RECORDS_AT_ONCE = 64
