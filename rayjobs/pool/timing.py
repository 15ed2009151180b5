"""The time estimate of a dry run: a few evaluations are timed on a worker with the run's settings."""

import time
from dataclasses import asdict, dataclass, replace

from ortho_core.errors import RunFailed, UserError
from rayjobs.pool.engine_search import EngineSearch
from rayjobs.pool.protocol import PoolJob
from rayjobs.pool.worker import OwnProcess
from rayjobs.verb.faults import explained
from rayjobs.verb.session import ray_session

#: Evaluations of every slot that are timed. The same number is run before, without timing, to warm up.
TIMED = 3


@dataclass(frozen=True)
class Timing:
    """Seconds for one evaluation of one image, and the worker that was measured."""

    seconds_per_evaluation: float
    slots: int
    device: str
    gpus_per_worker: float = 0.0

    def hours(self, evaluations: int) -> float:
        """Hours of one worker for this number of evaluations."""
        return evaluations * self.seconds_per_evaluation / 3600

    def as_json(self) -> dict[str, float | str]:
        return asdict(self)


def seconds_per_evaluation(job: PoolJob, search: EngineSearch) -> Timing:
    """Time the search on a worker. Raises UserError or RunFailed."""
    import ray

    with ray_session():
        job.fitting(1)
        gpus, device = job.gpus(), job.worker_device()
        task = ray.remote(num_cpus=job.cpus_per_worker, num_gpus=gpus, max_retries=0)(_time)
        if job.node_labels:
            task = task.options(label_selector=job.node_labels)
        try:
            timing: Timing | str = ray.get(task.remote(search, max(1, int(job.cpus_per_worker)), device))
        except ray.exceptions.RayError as error:
            raise RunFailed(f"the timing failed: {explained(error, job)}") from error
    if isinstance(timing, str):
        raise UserError(timing)
    return replace(timing, gpus_per_worker=gpus)


def _time(search: EngineSearch, threads: int, device: str) -> Timing | str:
    """Runs on a worker: times the engine on random images. Returns the message of a UserError instead of raising it."""
    import torch

    from ortho_core.estep.engine import Engine
    from ortho_core.estep.queue import requests_of

    torch.set_num_threads(threads)
    try:
        generator = search.generator(device)
        rows = search.goal.rows(generator, search.pairs, OwnProcess(device, threads).decoder)
    except UserError as error:
        return str(error)
    config = search.goal.config.brief(TIMED)
    slots = search.slots(rows, generator, config, [])
    engine = Engine(generator, config, slots, rows.objective)
    inputs = rows.objective.blank_inputs(slots)
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        list(engine.run(requests_of(range(slots), list(range(slots)), inputs)))
        seconds = time.perf_counter() - began
    return Timing(round(seconds / (TIMED * slots), 6), slots, device)
