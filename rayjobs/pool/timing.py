"""What a dry run says about time: a few evaluations, timed on a worker like those of the run."""

import time
from typing import Any

from ortho_core.errors import RunFailed, UserError
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from rayjobs.pool.worker import ShardActor
from rayjobs.verb.session import innermost, ray_session

#: Evaluations of every slot that are timed, after as many that are not.
TIMED = 3


def seconds_per_evaluation(
    job: Any, model: ModelFolder, rows_per_shard: int, worker: type[ShardActor]
) -> dict[str, Any]:
    """Seconds for one evaluation of one image, with what it was measured on. Raises UserError or RunFailed."""
    import ray

    with ray_session():
        job.fitting(1, job.node_labels)
        gpus = job.gpus()
        task = ray.remote(num_cpus=job.cpus_per_worker, num_gpus=gpus, max_retries=0)(_time)
        if job.node_labels:
            task = task.options(label_selector=job.node_labels)
        try:
            told = ray.get(task.remote(job, model, rows_per_shard, worker, "cuda" if gpus else "cpu"))
        except ray.exceptions.RayError as error:
            raise RunFailed(f"the timing failed: {innermost(error)}") from error
    if "error" in told:
        raise UserError(told["error"])
    return {**told, "gpus_per_worker": gpus}


def _time(job: Any, model: ModelFolder, rows_per_shard: int, worker: type[ShardActor], device: str) -> dict[str, Any]:
    """On a worker: the engine on images of noise."""
    import torch

    from ortho_core.estep.capacity import slots_that_fit
    from ortho_core.estep.engine import Engine
    from ortho_core.estep.queue import requests_of

    torch.set_num_threads(max(1, int(job.cpus_per_worker)))
    try:
        generator = load_generator(model, device, job.dtype, gradient_checkpointing=job.gradient_checkpointing)
        objective = worker.objective_of(job, generator)
    except UserError as error:
        return {"error": str(error)}
    config = worker.config_of(job).brief(TIMED)
    slots = job.slots or min(slots_that_fit(generator, config, objective), rows_per_shard)
    engine = Engine(generator, config, slots, objective)
    inputs = objective.blank_inputs(slots)
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        list(engine.run(requests_of(range(slots), list(range(slots)), inputs)))
        seconds = time.perf_counter() - began
    each = seconds / (TIMED * slots)
    return {"seconds_per_evaluation": round(each, 6), "slots": slots, "device": device}
