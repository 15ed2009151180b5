"""The E-step job: `ortho assign` gives every image of a pair set the noise that the model maps closest to it.

A Ray Data actor pool works through shards of rows; each actor holds the model, and publishes one part file per shard.
"""

import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ortho_core.assignments import Assignments, Failure
from ortho_core.errors import RunFailed, UserError
from ortho_core.gaussianity import verdict, write_diagnostics
from ortho_core.generators.base import latent_shape_of, model_fingerprint, target_shape_of
from ortho_core.pairs import PairFields, PairSet, Shard
from ortho_core.settings import AssignConfig
from ortho_core.shard import ShardResult
from ortho_core.storage import Location, Store, absolute
from rayjobs.assign_worker import ShardActor, packed
from rayjobs.ledger import Ledger, Task, claim, differences
from rayjobs.progress import Progress, say, summary_json
from rayjobs.session import WorkerResources, ray_session


def span(given: Any) -> Any:
    """`3`, `2:64`, or `0` for none, in one spelling."""
    if isinstance(given, bool) or not isinstance(given, int | str):
        return given
    least, _, most = str(given).partition(":")
    if str(given) == "0":
        return "0"
    if not (least.isdecimal() and (most or least).isdecimal() and 1 <= int(least) <= int(most or least)):
        raise ValueError("a number of workers, LEAST:MOST, or 0 for none: in the command's own process")
    return str(given)


def labels(given: Any) -> Any:
    """`name=value,name=value` as a mapping."""
    if not isinstance(given, str):
        return given
    pairs = [item.partition("=") for item in given.split(",")]
    if not all(name and equals for name, equals, _ in pairs):
        raise ValueError("labels as NAME=VALUE,NAME=VALUE")
    return {name.strip(): value.strip() for name, _, value in pairs}


class PoolResources(WorkerResources):
    """A pool of workers, and what it works through."""

    rows_per_shard: int = Field(
        0, ge=0, description="rows of one task and part file, what a lost worker repeats (0: 64 to 1024, by the set)"
    )
    workers: Annotated[str, BeforeValidator(span)] = Field(
        "1",
        description="actors in the pool, N or LEAST:MOST, fewer if the cluster has no room yet (0: work in this process, for a "
        "debugger)",
    )
    node_labels: Annotated[dict[str, str] | None, BeforeValidator(labels)] = Field(
        None, description="run workers only on nodes with these labels, e.g. ray.io/accelerator-type=H100"
    )
    cpus_per_decoder: float | None = Field(
        None,
        ge=0,
        description="CPUs of the process that decodes images for a worker (none: 1 where the cluster has so many to spare)",
    )
    max_failure_rate: float = Field(
        0.5, ge=0, le=1, description="end the run once more than this share of the rows so far is quarantined"
    )

    @property
    def pool_size(self) -> tuple[int, int]:
        """The least and the most workers; none: the command's own process works."""
        least, _, most = self.workers.partition(":")
        return int(least), int(most or least)

    def session(self) -> AbstractContextManager[None]:
        """Ray, where there is a pool."""
        return ray_session() if self.pool_size[1] else nullcontext()


class PoolSettings(PoolResources):
    """How a pool of workers searches through shards of rows."""

    seed: int = Field(0, ge=0, description="with a row's sample id, decides its base noise")
    slots: int = Field(0, ge=0, description="images side by side on one worker (0: what fits the GPU, 16 without one)")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="precision of network and text encoders"
    )
    store: Literal["parameters", "noise"] = Field(
        "parameters", description="keep the noise as seed and rotation, or also itself in half precision"
    )
    compile: bool = Field(False, description="torch.compile the network, once at the start of each worker")
    gradient_checkpointing: bool = Field(False, description="compute activations twice, to fit more slots")


class AssignSettings(AssignConfig, PoolSettings):
    """How the E-step runs; `em` has these under `assign.`."""

    store_latents: bool = Field(True, description="keep E(x) in the record, so that training need not encode again")


#: Options that decide how a run goes, not what comes out of it.
INDIFFERENT = WorkerResources.model_fields.keys() | {
    "workers",
    "node_labels",
    "cpus_per_decoder",
    "slots",
    "compile",
    "gradient_checkpointing",
    "max_failure_rate",
}


class AssignJob(AssignSettings, PairFields):
    """Assign noise to every image of a pair set (the E-step)."""

    pairs: Location = Field(
        description="pair set: pairs.jsonl, Parquet, WebDataset tars or an imagefolder; path or URL"
    )
    model: Path = Field(description="model folder (diffusers format)")
    out: Location = Field(description="folder or URL for the assignments; the same command again resumes")
    warm_start: Location | None = Field(
        None, description="finished assignments of the same pairs, e.g. with an earlier model, to start from"
    )
    retry_failures: bool = Field(False, description="besides what is not done yet, try the quarantined rows again")


def make_plan(job: AssignJob) -> tuple[dict[str, Any], PairSet, list[Shard]]:
    """What the run will do, from the input alone. Raises UserError for whatever can be found wrong beforehand."""
    job.space(latent_shape_of(job.model))
    pairs = PairSet(job.pairs, job.pair_fields())
    rows_per_shard = job.rows_per_shard or pairs.rows_per_shard()
    shards = pairs.shards(rows_per_shard)
    decisive = {
        name: getattr(job, name) for name in (*AssignConfig.model_fields, "seed", "dtype", "store", "store_latents")
    }
    if (
        job.candidates == 1
    ):  # without a choice the plan, and so the name of the parts, is what it was before there was one
        del decisive["candidates"]
    plan = {
        "pairs_fingerprint": pairs.fingerprint(),
        "model_fingerprint": model_fingerprint(job.model),
        "config": decisive,
        "warm_start": None,
        "rows": pairs.rows(),
        "rows_per_shard": rows_per_shard,
        "shards": len(shards),
    }
    if job.warm_start:
        plan["warm_start"] = check_warm_start(job, plan)
    return Ledger.seal(plan), pairs, shards


def check_warm_start(job: AssignJob, plan: dict[str, Any]) -> str:
    """The fingerprint of the assignments to start from. Raises UserError, naming what differs, if they do not fit."""
    assert job.warm_start is not None
    earlier = Assignments(job.warm_start).plan
    names = ("seed", "transform", "patch_size", "regions")
    whole = ("rows_per_shard", "pairs_fingerprint")
    before = {n: earlier["config"][n] for n in names} | {n: earlier[n] for n in whole}
    now = {n: plan["config"][n] for n in names} | {n: plan[n] for n in whole}
    if job.candidates > 1:  # the noise stays what the earlier run chose, from as many as are asked for
        before["candidates"], now["candidates"] = earlier["config"].get("candidates", 1), job.candidates
    if differing := differences(before, now):
        raise UserError(f"--warm-start {job.warm_start} does not fit this run: " + "; ".join(differing))
    return str(earlier["run_fingerprint"])


def plan(job: AssignJob) -> dict[str, Any]:
    """What a dry run prints; times a few evaluations on a worker like those of the run."""
    from rayjobs.estimate import seconds_per_evaluation

    content, _, _ = make_plan(job)
    C, H, W = shape = latent_shape_of(job.model)
    numbers = 0 if job.transform == "free" else job.space(shape).parameters
    record = 200 + 4 * numbers + 4 * math.prod(target_shape_of(job.model)) * job.store_latents
    if job.store == "noise":
        record += 2 * C * H * W
    elif job.transform == "free":
        record += 4 * C * H * W
    draws = 0 if job.warm_start else 1
    evaluations = job.evaluations_at_most(content["rows"], draws)
    timing = seconds_per_evaluation(job, content["rows_per_shard"], ShardActor)
    hours = evaluations * timing["seconds_per_evaluation"] / 3600
    return {
        **content,
        "evaluations_at_most": evaluations,
        "candidate_forwards": content["rows"] * job.candidate_forwards * draws,
        **timing,
        f"{'gpu' if timing['device'] == 'cuda' else 'worker'}_hours_at_most": round(
            hours * (timing["gpus_per_worker"] or 1), 3
        ),
        "hours_at_most": round(hours / min(max(1, job.pool_size[1]), content["shards"]), 3),
        "bytes_to_write_about": content["rows"] * record,
        "out": job.out,
    }


def run(job: AssignJob) -> int:
    """Assign what is not assigned yet. Returns 0, or 3 if rows were quarantined. Raises UserError or RunFailed."""
    job = job.model_copy(
        update={
            "out": absolute(job.out),
            "pairs": absolute(job.pairs),
            "model": job.model.absolute(),
            "warm_start": absolute(job.warm_start) if job.warm_start else None,
            "image_root": absolute(job.image_root) if job.image_root else None,
        }
    )
    sealed, pairs, shards = make_plan(job)
    folder = claim(job.out, sealed, "assign")
    ledger = Ledger(folder, sealed)
    todo, rows, quarantined = ledger.survey(job.retry_failures)
    if not todo and folder.exists("summary.json"):
        say(f"assign: {job.out} is complete")
        return 3 if quarantined else 0
    started = time.monotonic()
    if todo:
        with job.session():
            work_through(job, ledger, pairs, [(task, shards[task.shard]) for task in todo], rows, quarantined)
    seconds = time.monotonic() - started
    return conclude(job, ledger, sealed["rows"] - rows, seconds)


def conclude(job: AssignJob, ledger: Ledger, rows_this_run: int, seconds: float) -> int:
    """Reconcile, look at the noise as a whole, write the summary. Returns the exit code."""
    counts = ledger.finish()
    if counts["assigned"]:
        counts["gaussianity"] = write_gaussianity(ledger.folder, latent_shape_of(job.model))
        say(f"assign: {counts['gaussianity']}")
    summary = {
        **counts,
        "rows_this_run": rows_this_run,
        "seconds_this_run": round(seconds, 2),
        "rows_per_second": round(rows_this_run / seconds, 3) if rows_this_run else None,
        "config": job.model_dump(mode="json"),
        "run_fingerprint": ledger.plan["run_fingerprint"],
    }
    ledger.folder.replace("summary.json", summary_json(summary).encode())
    if not counts["assigned"]:
        raise RunFailed(f"none of the {counts['rows']} rows could be assigned; see {job.out}/failures.jsonl")
    return 3 if counts["quarantined"] else 0


#: Numbers of noise that the pooled diagnostics look at: enough to see small departures, and seconds of work.
POOLED = 1 << 22


def write_gaussianity(out: Store, latent_shape: tuple[int, int, int]) -> str:
    """`orthogonal_gaussian_init` and `_final`, JSON and PNG, pooled over rows from the whole set; returns the verdict."""
    assignments = Assignments(out.location)
    count = max(1, min(len(assignments), POOLED // math.prod(latent_shape)))
    index = [i * len(assignments) // count for i in range(count)]
    maps = {"init": assignments.base_noise(index, latent_shape), "final": assignments.noise(index, latent_shape)}
    titles = {"init": "base noise", "final": "assigned noise, pooled"}
    with tempfile.TemporaryDirectory() as scratch:
        for when, noise in maps.items():
            stem = Path(scratch) / f"orthogonal_gaussian_{when}"
            statistics = write_diagnostics(noise, assignments.patch_size, titles[when], stem)
        for file in Path(scratch).iterdir():
            out.replace_file(file.name, file)
    return verdict(statistics)


#: Rows before which the share of quarantined ones says too little to end a run.
MANY_ROWS = 100


def work_through(
    job: Any,
    ledger: Ledger,
    pairs: PairSet,
    todo: list[tuple[Task, Shard]],
    rows: int,
    quarantined: int,
    worker: type[ShardActor] = ShardActor,
    verb: str = "assign",
) -> None:
    """Run the tasks through the pool. `rows` and `quarantined` are settled already. Raises RunFailed or UserError."""
    tasks = {task.shard: (task, shard) for task, shard in todo}
    progress = Progress(verb, ledger.plan["rows"], "rows", done=rows)
    loss, assigned, example = 0.0, 0, f"see {job.out}/failures.jsonl"
    for done in receipts(job, ledger.plan, pairs, todo, worker):
        task, shard = tasks[int(done["index"])]
        if done["error"]:
            raise RunFailed(str(done["error"]))
        if done["notes"]:
            say(f"{verb}: {done['notes']}")
        failures = [Failure(**f) for f in json.loads(done["failures"])]
        if failures and not task.revision:
            if shard.index == 0:
                reasons = ", ".join(sorted({f.reason for f in failures}))
                raise RunFailed(
                    f"every row of the first shard failed ({reasons}), so the run was ended; "
                    f"the first: {failures[0].message}"
                )
            ledger.commit(task, ShardResult(failures=failures))
        loss += done["loss"]
        assigned += done["assigned"]
        quarantined += done["quarantined"] + len(failures)
        units = shard.rows if task.only is None else len(task.only)
        rows += units
        example = done["example"] or (failures[0].message if failures else example)
        if rows >= MANY_ROWS and quarantined > job.max_failure_rate * rows:
            raise RunFailed(
                f"{quarantined:.0f} of {rows} rows so far are quarantined, more than --max-failure-rate "
                f"{job.max_failure_rate:g} allows; one of them: {example}"
            )
        note = f"mean loss {loss / assigned:.4f}" if assigned else ""
        progress.advance(units, note + (f", {quarantined:.0f} quarantined" if quarantined else ""))
    progress.close()


def receipts(
    job: Any,
    sealed: dict[str, Any],
    pairs: PairSet,
    todo: list[tuple[Task, Shard]],
    worker: type[ShardActor] = ShardActor,
) -> Iterator[dict[str, Any]]:
    """Run the tasks through a Ray Data actor pool, or one after the other in this process; yields a receipt for each, in order
    of completion.
    """
    if not job.pool_size[1]:
        own = worker(job, sealed, pairs, gpus=job.own_gpus(), decoder_cpus=0)
        yield from (own.work(task, shard) for task, shard in todo)
        return
    from rayjobs.pool import Attempts, on_this_node, pooled

    least, most = (min(size, len(todo)) for size in job.pool_size)
    least = job.fitting(least, job.node_labels)
    arguments = {
        "job": job,
        "sealed": sealed,
        "pairs": pairs,
        "gpus": job.gpus(),
        "decoder_cpus": job.spare_cpu(most) if job.cpus_per_decoder is None else job.cpus_per_decoder,
        "attempts": on_this_node(Attempts),
    }
    # A minute per evaluation, or forward, is slower than any machine of use.
    passes = job.steps + job.candidate_forwards
    patience_s = max(1800, 60 * passes * -(-sealed["rows_per_shard"] // (job.slots or 8)))
    yield from pooled(
        worker,
        arguments,
        [packed(task, shard) for task, shard in todo],
        (least, most),
        cpus=job.cpus_per_worker,
        gpus=job.gpus(),
        labels=job.node_labels,
        patience_s=patience_s,
    )


if __name__ == "__main__":
    from rayjobs.cli import main

    sys.exit(main(["assign", *sys.argv[1:]]))
