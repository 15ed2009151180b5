"""A worker of the pool, for any search: it turns shards into part files and reports to the driver."""

import time

import torch

from ortho_core.pairs.decoding import Decode, decode_in_threads, usable_rows
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Failure, Shard
from ortho_core.records.parts import ShardResult
from ortho_core.records.plan import ShardedPlan
from rayjobs.pool.ledger import Ledger, Task
from rayjobs.pool.messages import Receipt, Work
from rayjobs.pool.protocol import Search, WorkerPlace
from rayjobs.pool.turns import Turns

#: A shard is quarantined instead of searched again after its worker has died this many times.
DEATHS = 4


class Counted:
    """How often each shard was begun, counted in this process."""

    def __init__(self) -> None:
        self.begun: dict[int, int] = {}

    def so_far(self, shard: int) -> int:
        return self.begun.get(shard, 0)

    def begin(self, shard: int) -> int:
        before = self.begun.get(shard, 0)
        self.begun[shard] = before + 1
        return before


class OwnProcess:
    """The place of a worker that is the command's own process: one shard at a time, without Ray."""

    concurrent, metrics = False, None

    def __init__(self, device: str, threads: int) -> None:
        self.device, self.threads, self.attempts = device, threads, Counted()

    def decoder(self, pairs: PairSet) -> Decode:
        return decode_in_threads


class PoolWorker:
    """One worker of the pool. May be called from several threads at once, each with a shard."""

    def __init__(self, search: Search, ledger: Ledger[ShardedPlan], place: WorkerPlace) -> None:
        self.pairs, self.ledger, self.place = search.pairs, ledger, place
        self.turns, self.notes = Turns(), list[str]()
        self.broken: Exception | None = None
        try:
            torch.set_num_threads(place.threads)
            self.searcher = search.load(place, self.notes)
        except Exception as error:  # an error raised from here would make Ray restart the actor without end
            self.broken = error

    def work(self, work: Work) -> Receipt:
        """Search a shard and publish the result. Errors are returned in the receipt."""
        task = work.task
        if self.broken is not None:
            return self._ended(task, self.broken)
        try:
            # An earlier attempt may have published the part and died before it could return the receipt.
            if (footer := self.ledger.committed(task)) is not None:
                about = footer.about
                return Receipt(task.shard, footer.rows, len(about.failures), about.loss_sum)
            return self._publish(task, self._search(task, work.shard))
        except Exception as error:  # if raised from here, Ray would lose the line of code where it occurred
            return self._ended(task, error)

    def _ended(self, task: Task, error: Exception) -> Receipt:
        """The receipt for an error that ends the run."""
        slots = 0 if self.broken is not None else self.searcher.usage().slots
        return Receipt.of_error(task.shard, error, self._notes(), slots)

    def _notes(self) -> str:
        line = "; ".join(self.notes)
        self.notes.clear()
        return line

    def _search(self, task: Task, shard: Shard) -> ShardResult:
        attempts = self.place.attempts
        suspect = attempts.so_far(shard.index) > 0
        with self.turns.take(alone=suspect):
            if attempts.begin(shard.index) >= DEATHS:
                return self._given_up(task, shard)
            result = self.searcher.search(shard, task.only)
        if self.place.metrics is not None:
            self.place.metrics.shard(result, self.searcher.usage())
        return result

    def _given_up(self, task: Task, shard: Shard) -> ShardResult:
        """Every row of a shard as a failure: unusable rows with their own reason, the others with "worker-died"."""
        result = ShardResult()
        for pair in usable_rows(self.pairs, shard, result.failures, task.only):
            message = (
                f"row {pair.row}: its worker died {DEATHS} times while it searched the shard with this row; signal 9 mostly "
                "means that the machine's memory ran out; fewer --workers need less"
            )
            result.failures.append(Failure(pair.sample_id, pair.row, "worker-died", message, pair.image))
        return result

    def _publish(self, task: Task, result: ShardResult) -> Receipt:
        notes = self._notes()
        if not result.rows:
            # For a whole shard, the driver decides whether the data or the run is wrong. For rows that failed before, nothing
            # has changed.
            return Receipt(task.shard, failures=tuple(result.failures), notes=notes)
        began = time.perf_counter()
        self.ledger.commit(task, result)
        if self.place.metrics is not None:
            self.place.metrics.published(time.perf_counter() - began)
        return Receipt(
            task.shard,
            assigned=len(result.rows),
            quarantined=len(result.failures),
            loss=sum(result.losses("loss")),
            example=result.failures[0].message if result.failures else "",
            notes=notes,
        )
