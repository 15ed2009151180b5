"""The pass over a run's prompts before its work: the pool's workers encode those that the store lacks, once each.

A task is some prompts and becomes one shard of the store. The file is the receipt: it appears whole under its name or not at all,
so a lost worker costs one shard, and a run that was ended encodes only what is missing. The driver keeps 8 bytes per different
prompt in memory, and the texts of one round.
"""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import compress
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ortho_core.errors import BadRow, RunFailed, UserError
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.precision import network_dtype
from ortho_core.generators.prompt_cache import FILLER, encode_with, encoded_rows
from ortho_core.generators.prompt_keys import SeenNumbers, numbers_of
from ortho_core.generators.prompt_store import ENCODED_AT_ONCE, FRAME_IDS, PromptStore
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Shard
from ortho_core.storage.lease import held
from ortho_core.storage.local import LocalStore
from ortho_core.storage.store import one_line
from rayjobs.pool.driver import NO_PROGRESS_S, failed
from rayjobs.pool.messages import Receipt
from rayjobs.pool.protocol import Attempts
from rayjobs.pool.worker import DEATHS, Counted
from rayjobs.verb.console import LINE_EVERY_S, Progress, amount, say

#: Bytes of a shard, at most, and prompts: a lost worker's shard is encoded again.
SHARD_BYTES, MOST_PROMPTS = 128 << 20, 1024
#: Shards for each worker, so that none waits for the last one for long.
SHARDS_PER_WORKER = 4
#: Bytes of text that are handed to the pool at a time. The models are loaded again for each round.
ROUND_BYTES = 64 << 20

#: Returns the prompts of a run in pieces. Prompts may repeat. It is called again if they are read a second time.
Prompts = Callable[[], Iterable[Sequence[str]]]


class PassJob(Protocol):
    """What the pass needs from a job, besides the number of its workers."""

    @property
    def cpus_per_worker(self) -> float: ...

    @property
    def node_labels(self) -> dict[str, str] | None: ...

    def gpus(self) -> float: ...

    def worker_device(self) -> str: ...

    def own_device(self) -> str: ...

    def fitting(self, wanted: int) -> int: ...


@dataclass(frozen=True)
class Encoding:
    """How prompts are encoded, and where their embeddings go. It holds no loaded model, so it can be sent to workers."""

    location: str
    model: ModelFolder
    #: As `load_generator` accepts it.
    dtype: str
    quantize: str = "none"

    def store(self, device: str | torch.device) -> PromptStore:
        """The store of a worker on this device."""
        return PromptStore.of(self.location, self.model, self.dtype, device)

    def row_bytes(self, device: str | torch.device) -> int:
        """Bytes of an embedding. Raises whatever error a model that cannot be counted gives."""
        # Not above: it imports diffusers, which takes seconds.
        from ortho_core.memory.blank import blank_generator
        from ortho_core.memory.live import without_numbers

        with without_numbers():
            blank = blank_generator(self.model, network_dtype(self.dtype, device, self.model.half))
            encoded = blank.encode_prompts([FILLER]).tensors
            return sum(tensor.nbytes for name, tensor in encoded.items() if name != FRAME_IDS)


def prompts_of(pairs: PairSet, shards: Sequence[Shard]) -> Prompts:
    """The prompts of these shards of a pair set; no images are read."""
    return lambda: (list(pairs.prompts(shard)) for shard in shards)


def fill(job: PassJob, workers: tuple[int, int], encoding: Encoding, prompts: Prompts, verb: str) -> None:
    """Encode the prompts that the store lacks, with `workers` (least, most; 0: in this process).

    Call it in a session of Ray if there are workers. Raises UserError or RunFailed.
    """
    device = job.worker_device() if workers[1] else job.own_device()
    store = encoding.store(device)
    _open(store)
    count, texts = _missing(store, prompts)
    if not count:
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(held(store.folder.location, verb, say))
        except OSError as error:
            raise UserError(f"--prompt-embeddings: cannot write to {encoding.location}: {one_line(error)}") from error
        known = len(store)
        _open(store)
        if len(store) != known:  # another run has encoded prompts while this one waited
            count, texts = _missing(store, prompts)
        if count:
            _fill(job, workers, encoding, store, count, texts, device)


def _open(store: PromptStore) -> None:
    """Read the list of the store's prompts; removes what is damaged there, and what dead processes left."""
    store.folder.sweep()
    for line in store.open_sound():
        say(f"prompts: {line}; its prompts are encoded again")


def _missing(store: PromptStore, prompts: Prompts) -> tuple[int, Callable[[], Iterator[list[str]]]]:
    """The number of different prompts that the store lacks, and a function for them in rounds."""
    count, rounds, first = 0, 0, list[str]()
    for texts in _rounds(store, prompts):
        count, rounds = count + len(texts), rounds + 1
        first = texts if rounds == 1 else []
    if rounds > 1:
        return count, lambda: _rounds(store, prompts)
    return count, lambda: iter([first])


def _rounds(store: PromptStore, prompts: Prompts) -> Iterator[list[str]]:
    """The different prompts that the store lacks, each once, in lists of about `ROUND_BYTES` of text."""
    seen, texts, size = SeenNumbers(store.numbers), list[str](), 0
    read, known, told = 0, len(seen), time.monotonic()
    for some in prompts():
        fresh = list(compress(some, seen.fresh(numbers_of(some))))
        texts += fresh
        size += sum(map(len, fresh))
        read += len(some)
        if time.monotonic() - told >= LINE_EVERY_S:
            told = time.monotonic()
            say(f"prompts: {read:,} read, {len(seen) - known:,} of them are different and not encoded yet")
        if size >= ROUND_BYTES:
            yield texts
            texts, size = [], 0
    if texts:
        yield texts


def _fill(
    job: PassJob,
    workers: tuple[int, int],
    encoding: Encoding,
    store: PromptStore,
    count: int,
    texts: Callable[[], Iterator[list[str]]],
    device: str,
) -> None:
    each = _announced(encoding, store, count, device)
    share = -(-count // (SHARDS_PER_WORKER * max(1, workers[1])))
    size = max(1, min(SHARD_BYTES // (each or SHARD_BYTES // 64), MOST_PROMPTS, share))
    size = -(-size // ENCODED_AT_ONCE) * ENCODED_AT_ONCE
    number, refused, begun = store.next_number(), 0, len(store)
    starting = "starting the workers, which load the model" if workers[1] else "loading the model"
    progress = Progress("prompts", count, "prompts", starting=starting)
    for some in texts():
        tasks = [PromptTask(number + k, tuple(some[i : i + size])) for k, i in enumerate(range(0, len(some), size))]
        number += len(tasks)
        for receipt in _receipts(job, workers, encoding, tasks, device):
            if receipt.fault is not None:
                raise failed(job, receipt.fault, "prompts", receipt.slots, receipt.traceback)
            refused += receipt.quarantined
            progress.advance(receipt.assigned + receipt.quarantined)
    progress.close()
    unusable = f"; {refused:,} are left out, because the model cannot use them" if refused else ""
    say(f"prompts: {begun + count - refused:,} are in {store.folder.location}{unusable}")


def _announced(encoding: Encoding, store: PromptStore, count: int, device: str) -> int | None:
    """Print what will be encoded; returns the bytes of an embedding, None if unknown.

    Raises UserError if the disk has less room than that.
    """
    each = store.row_bytes()
    if each is None:
        try:
            each = encoding.row_bytes(device)
        except Exception:  # a model that cannot be counted is encoded all the same
            say(f"prompts: {count:,} different prompts are encoded for {encoding.location}")
            return None
    need = f"{amount(each)} each, {amount(count * each)} in all"
    if isinstance(store.folder, LocalStore):
        place = next(folder for folder in (store.folder.path, *store.folder.path.parents) if folder.exists())
        free = shutil.disk_usage(place).free
        if count * each > free:
            raise UserError(
                f"--prompt-embeddings {encoding.location} has {amount(free)} free, and {count:,} prompts need "
                f"{amount(count * each)} ({amount(each)} each): free some room, give a folder elsewhere, or leave it out"
            )
    say(f"prompts: {count:,} different prompts are encoded for {encoding.location}, {need}")
    return each


@dataclass(frozen=True)
class PromptTask:
    """Some prompts that become the shard `number`."""

    number: int
    prompts: tuple[str, ...]

    def to_row(self) -> dict[str, str]:
        return {"task": json.dumps([self.number, *self.prompts])}

    @staticmethod
    def of_row(row: Mapping[str, str]) -> "PromptTask":
        number, *prompts = json.loads(row["task"])
        return PromptTask(number, tuple(prompts))


class PromptWorker:
    """Encodes prompts and publishes them as shards. May be called from several threads at once."""

    def __init__(self, encoding: Encoding, device: str, threads: int, attempts: Attempts) -> None:
        self.attempts, self.one_at_a_time = attempts, threading.Lock()
        self.broken: Exception | None = None
        try:
            torch.set_num_threads(threads)
            self.generator = load_generator(encoding.model, device, encoding.dtype, quantize=encoding.quantize)
            self.generator.park(autoencoder=True)
            self.store = encoding.store(device)
        except Exception as error:  # an error raised from here would make Ray restart the actor without end
            self.broken = error

    def work(self, task: PromptTask) -> Receipt:
        """Encode and publish a task's prompts, unless that is done. Errors are returned in the receipt."""
        if self.broken is not None:
            return Receipt.of_error(task.number, self.broken)
        try:
            name = self.store.name_of(task.number, task.prompts)
            # An earlier attempt may have published the shard and died before it could return the receipt.
            if self.store.folder.exists(name):
                return Receipt(task.number, assigned=len(task.prompts))
            if self.attempts.begin(task.number) >= DEATHS:
                raise RunFailed(
                    f"a worker died {DEATHS} times while it encoded {len(task.prompts)} prompts, the first of them "
                    f"{task.prompts[0][:100]!r}; signal 9 mostly means that the machine's memory ran out"
                )
            rows = self._encoded(task.prompts)
            if rows:
                self._publish(name, rows)
            return Receipt(task.number, assigned=len(rows), quarantined=len(task.prompts) - len(rows))
        except Exception as error:  # if raised from here, Ray would lose the line of code where it occurred
            return Receipt.of_error(task.number, error)

    def _publish(self, name: str, rows: Mapping[str, Mapping[str, Tensor]]) -> None:
        try:
            self.store.publish(name, rows)
        except OSError as error:
            raise RunFailed(f"cannot write {self.store.folder.location}/{name}: {error.strerror or error}") from error

    def _encoded(self, prompts: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        """The rows, in host memory, of the prompts that the model can use."""
        rows: dict[str, dict[str, Tensor]] = {}
        with self.one_at_a_time:
            for start in range(0, len(prompts), ENCODED_AT_ONCE):
                some = prompts[start : start + ENCODED_AT_ONCE]
                try:
                    encoded = self._batch(some)
                except BadRow:
                    encoded = {}
                    for prompt in some:
                        try:
                            encoded |= self._batch([prompt])
                        except BadRow:
                            continue
                rows |= {text: {name: tensor.cpu() for name, tensor in row.items()} for text, row in encoded.items()}
        return rows

    def _batch(self, prompts: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        return encoded_rows(lambda texts: encode_with(self.generator, texts), prompts, ENCODED_AT_ONCE, FILLER)


class PromptActor:
    """A worker in the form that Ray Data calls: with a batch of one task, from several threads."""

    def __init__(self, encoding: Encoding, **place: Any) -> None:
        """`place` are the other arguments of `PromptWorker`."""
        self.worker = PromptWorker(encoding, **place)

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
        task = PromptTask.of_row({name: value for name, (value,) in batch.items()})
        return {name: [value] for name, value in self.worker.work(task).to_row().items()}


def _receipts(
    job: PassJob, workers: tuple[int, int], encoding: Encoding, tasks: list[PromptTask], device: str
) -> Iterator[Receipt]:
    """Run tasks on the pool, or one by one in this process; yields their receipts in order of completion."""
    threads = max(1, int(job.cpus_per_worker))
    if not workers[1]:
        yield from map(PromptWorker(encoding, device, threads, Counted()).work, tasks)
        return
    from rayjobs.pool.actors import CountedBesideTheDriver, pooled

    least, most = (min(size, len(tasks)) for size in workers)
    done = pooled(
        PromptActor,
        {"encoding": encoding, "device": device, "threads": threads, "attempts": CountedBesideTheDriver()},
        [task.to_row() for task in tasks],
        (job.fitting(least), most),
        cpus=job.cpus_per_worker,
        gpus=job.gpus(),
        labels=job.node_labels,
        patience_s=NO_PROGRESS_S,
        job=job,
    )
    yield from map(Receipt.of_row, done)
