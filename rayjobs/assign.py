"""The E-step job: `ortho assign` gives every image of a pair set the noise that the model maps closest to it.

A Ray Data actor pool works through shards of rows; each actor holds the model, and publishes one part file per shard.
"""

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from ortho_core.assign import AssignConfig, Engine
from ortho_core.assignments import Assignments, Failure, write_part
from ortho_core.capacity import slots_that_fit
from ortho_core.errors import RunFailed, UserError
from ortho_core.gaussianity import verdict, write_diagnostics
from ortho_core.generators.base import latent_shape_of, load_generator, model_fingerprint
from ortho_core.pairs import PairFields, PairSet, Shard
from ortho_core.prompts import PromptCache
from ortho_core.shard import ShardAssigner, ShardResult
from rayjobs.ledger import Ledger, claim, differences, fingerprint, publish, replace_text
from rayjobs.progress import Progress, say, summary_json
from rayjobs.session import WorkerResources, innermost, ray_session


class AssignSettings(AssignConfig, WorkerResources):
    """How the E-step runs; `em` has these under `assign.`."""

    seed: int = Field(0, ge=0, description="with an image's sample id, decides its base noise")
    slots: int = Field(0, ge=0, description="images side by side on one worker (0: what fits the GPU, 16 without one)")
    rows_per_shard: int = Field(64, ge=1, description="rows of one task and one part file: what a lost worker repeats")
    workers: int = Field(1, ge=1, description="actors in the pool (fewer start if the cluster has no room)")
    max_failure_rate: float = Field(
        0.5, ge=0, le=1, description="end the run once more than this share of the rows so far is quarantined"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="precision of network and text encoders"
    )
    store_latents: bool = Field(True, description="keep E(x) in the record, so that training need not encode again")
    compile: bool = Field(False, description="torch.compile the network, once at the start of each worker")
    gradient_checkpointing: bool = Field(False, description="compute activations twice, to fit more slots")


class AssignJob(AssignSettings, PairFields):
    """Assign noise to every image of a pair set (the E-step)."""

    pairs: Path = Field(description="pair set: a folder with pairs.jsonl, or a .jsonl file")
    model: Path = Field(description="model folder (diffusers format)")
    out: Path = Field(description="folder for the assignments; the same command again resumes")
    warm_start: Path | None = Field(
        None, description="finished assignments of the same pairs, e.g. with an earlier model, to start from"
    )


def make_plan(job: AssignJob) -> tuple[dict[str, Any], PairSet, list[Shard]]:
    """What the run will do, from the input alone. Raises UserError for whatever can be found wrong beforehand."""
    pairs = PairSet(job.pairs, job.pair_fields())
    job.space(latent_shape_of(job.model))
    shards = pairs.shards(job.rows_per_shard)
    decisive = {name: getattr(job, name) for name in AssignConfig.model_fields}
    plan = {
        "pairs_fingerprint": pairs.fingerprint(),
        "model_fingerprint": model_fingerprint(job.model),
        "config": {**decisive, "seed": job.seed, "dtype": job.dtype, "store_latents": job.store_latents},
        "warm_start": earlier(job, pairs).plan["run_fingerprint"] if job.warm_start else None,
        "rows": sum(s.rows for s in shards),
        "rows_per_shard": job.rows_per_shard,
        "shards": len(shards),
    }
    return Ledger.seal(plan), pairs, shards


def earlier(job: AssignJob, pairs: PairSet) -> Assignments:
    """The assignments that `--warm-start` names. Raises UserError, naming what differs, if they do not fit this run."""
    assert job.warm_start is not None
    found = Assignments(job.warm_start)
    now = {name: getattr(job, name) for name in ("seed", "transform", "patch_size", "regions")}
    before = {name: found.plan["config"][name] for name in now}
    now |= {"rows_per_shard": job.rows_per_shard, "pairs_fingerprint": pairs.fingerprint()}
    before |= {name: found.plan[name] for name in ("rows_per_shard", "pairs_fingerprint")}
    if differing := differences(before, now):
        raise UserError(f"--warm-start {job.warm_start} does not fit this run: " + "; ".join(differing))
    return found


def plan(job: AssignJob) -> dict[str, Any]:
    """What a dry run prints."""
    content, _, _ = make_plan(job)
    C, H, W = latent_shape_of(job.model)
    record = 4 * job.space((C, H, W)).parameters + 200 + 4 * C * H * W * job.store_latents
    return {
        **content,
        "evaluations_at_most": content["rows"] * job.steps,
        "bytes_to_write_about": content["rows"] * record,
        "out": str(job.out),
    }


class ShardActor:
    """One worker of the pool: loads the model once, then turns shards into part files."""

    def __init__(self, job: AssignJob, sealed: dict[str, Any], gpus: float) -> None:
        self.job, self.plan = job, sealed
        self.error: str | None = None
        try:
            torch.set_num_threads(max(1, int(job.cpus_per_worker)))
            generator = load_generator(
                job.model, "cuda" if gpus else "cpu", job.dtype, gradient_checkpointing=job.gradient_checkpointing
            )
            self.pairs = PairSet(job.pairs, job.pair_fields())
            self.earlier = earlier(job, self.pairs) if job.warm_start else None
            self.notes: list[str] = []
            config = AssignConfig(**{name: getattr(job, name) for name in AssignConfig.model_fields})
            slots = job.slots or min(slots_that_fit(generator, config), job.rows_per_shard)
            if job.compile:  # not before the slots are counted: each batch size that is tried would be compiled
                compiled: Any = torch.compile(generator.trainable, dynamic=False)
                generator.trainable = compiled
            self.assigner = ShardAssigner(
                Engine(generator, config, slots, on_event=self.notes.append),
                PromptCache(generator),
                job.seed,
                job.store_latents,
                sealed["model_fingerprint"],
                fingerprint(sealed["config"]),
            )
        except Exception as error:  # raised from here, it would restart the actor for ever
            self.error = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {innermost(error)}"

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        receipts = [self.work(Shard(*map(int, key))) for key in zip(*(batch[k] for k in SHARD_KEYS), strict=True)]
        return {name: [r[name] for r in receipts] for name in receipts[0]}

    def work(self, shard: Shard) -> dict[str, Any]:
        if self.error is not None:
            return receipt(shard, error=self.error)
        engine, starts = self.assigner.engine, None
        if self.earlier is not None:
            starts = self.earlier.parameters(shard.index, engine.generator.latent_shape)
        result = self.assigner.assign(self.pairs, shard, starts)
        notes = "; ".join(self.notes)
        self.notes.clear()
        if not result.rows:
            # The driver decides whether a shard without one usable row is the data's fault or the run's.
            return receipt(shard, failures=[vars(f) for f in result.failures], notes=notes)
        commit(Ledger(self.job.out, self.plan), shard, result)
        return receipt(
            shard,
            assigned=len(result.rows),
            quarantined=len(result.failures),
            loss=_loss_sum(result),
            example=result.failures[0].message if result.failures else "",
            notes=notes,
        )


SHARD_KEYS = ("index", "first", "rows", "offset")


def receipt(
    shard: Shard,
    assigned: int = 0,
    quarantined: int = 0,
    loss: float = 0.0,
    failures: list[dict[str, Any]] | None = None,
    error: str = "",
    example: str = "",
    notes: str = "",
) -> dict[str, Any]:
    return {
        "index": shard.index,
        "assigned": assigned,
        "quarantined": quarantined,
        "loss": loss,
        "failures": failures or [],
        "error": error,
        "example": example,
        "notes": notes,
    }


def _loss_sum(result: ShardResult) -> float:
    return sum(row["loss"] for row in result.rows)


def commit(ledger: Ledger, shard: Shard, result: ShardResult) -> None:
    """Publish the shard's part file, unless someone already has."""
    about = {
        "shard": shard.index,
        "run_fingerprint": ledger.plan["run_fingerprint"],
        "truncated_prompts": result.truncated_prompts,
        "evaluations": result.evaluations,
        "loss_sum": _loss_sum(result),
        "initial_loss_sum": sum(row["initial_loss"] for row in result.rows),
    }
    publish(ledger.path(shard.index), lambda path: write_part(path, result.rows, result.failures, about))


def receipts(job: AssignJob, sealed: dict[str, Any], shards: list[Shard]) -> Iterator[dict[str, Any]]:
    """Run the shards through a Ray Data actor pool; yields one receipt per shard, in order of completion."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Progress counts finished shards; the default of half an hour would end a slow but healthy run, and without any limit
    # a row that kills its process would be tried for ever. A minute per evaluation is slower than any machine of use.
    context.execution_no_progress_timeout_s = max(1800, 60 * job.steps * -(-job.rows_per_shard // (job.slots or 8)))
    workers = min(job.workers, len(shards))
    pool = ray.data.ActorPoolStrategy(min_size=job.fitting(workers), max_size=workers, max_tasks_in_flight_per_actor=2)
    gpus = job.gpus()
    # One block per shard: a block is what Ray Data retries when an actor dies.
    tasks = ray.data.from_items([vars(shard) for shard in shards], override_num_blocks=len(shards))
    done = tasks.map_batches(
        ShardActor,
        batch_size=1,
        compute=pool,
        num_cpus=job.cpus_per_worker,
        num_gpus=gpus or None,
        fn_constructor_kwargs={"job": job, "sealed": sealed, "gpus": gpus},
    )
    try:
        yield from done.iter_rows()
    except ray.exceptions.RayError as error:
        raise RunFailed(f"a worker failed: {innermost(error)}") from error


def run(job: AssignJob) -> int:
    """Assign what is not assigned yet. Returns 0, or 3 if rows were quarantined. Raises UserError or RunFailed."""
    sealed, _, shards = make_plan(job)
    job = job.model_copy(
        update={
            "out": job.out.absolute(),
            "pairs": job.pairs.absolute(),
            "model": job.model.absolute(),
            "warm_start": job.warm_start.absolute() if job.warm_start else None,
        }
    )
    claim(job.out, sealed, "assign")
    ledger = Ledger(job.out, sealed)
    todo = ledger.pending()
    started = time.monotonic()
    rows_before = sealed["rows"] - sum(shards[i].rows for i in todo)
    if todo:
        with ray_session():
            work_through(job, ledger, [shards[i] for i in todo], rows_before)
    summary_file = job.out / "summary.json"
    if not todo and summary_file.is_file():
        say(f"assign: {job.out} is complete")
        return 3 if json.loads(summary_file.read_text())["quarantined"] else 0
    counts = ledger.finish()
    seconds = time.monotonic() - started
    if counts["assigned"]:
        counts["gaussianity"] = write_gaussianity(job.out, latent_shape_of(job.model))
        say(f"assign: {counts['gaussianity']}")
    summary = {
        **counts,
        "rows_this_run": sealed["rows"] - rows_before,
        "seconds_this_run": round(seconds, 2),
        "rows_per_second": round((sealed["rows"] - rows_before) / seconds, 3) if todo else None,
        "config": job.model_dump(mode="json"),
        "run_fingerprint": sealed["run_fingerprint"],
    }
    replace_text(summary_file, summary_json(summary))
    if not counts["assigned"]:
        raise RunFailed(f"none of the {counts['rows']} rows could be assigned; see {job.out}/failures.jsonl")
    return 3 if counts["quarantined"] else 0


#: Numbers of noise that the pooled diagnostics look at: enough to see small departures, and seconds of work.
POOLED = 1 << 22


def write_gaussianity(out: Path, latent_shape: tuple[int, int, int]) -> str:
    """`orthogonal_gaussian_init` and `_final`, JSON and PNG, pooled over rows from the whole set; returns the verdict."""
    assignments = Assignments(out)
    count = max(1, min(len(assignments), POOLED // math.prod(latent_shape)))
    index = [i * len(assignments) // count for i in range(count)]
    maps = {"init": assignments.base_noise(index, latent_shape), "final": assignments.noise(index, latent_shape)}
    titles = {"init": "base noise", "final": "assigned noise, pooled"}
    for when, noise in maps.items():
        stem = out / f"orthogonal_gaussian_{when}"
        statistics = write_diagnostics(noise, assignments.patch_size, titles[when], stem)
    return verdict(statistics)


#: Rows before which the share of quarantined ones says too little to end a run.
MANY_ROWS = 100


def work_through(job: AssignJob, ledger: Ledger, shards: list[Shard], rows_before: int) -> None:
    by_index = {shard.index: shard for shard in shards}
    progress = Progress("assign", ledger.plan["rows"], "rows", done=rows_before)
    rows, quarantined = ledger.committed()
    loss, assigned, example = 0.0, 0, "see its part files"
    for done in receipts(job, ledger.plan, shards):
        shard = by_index[int(done["index"])]
        if done["error"]:
            raise RunFailed(str(done["error"]))
        if done["notes"]:
            say(f"assign: {done['notes']}")
        failures = [Failure(**f) for f in done["failures"]]
        if failures:
            if shard.index == 0:
                reasons = ", ".join(sorted({f.reason for f in failures}))
                raise RunFailed(
                    f"every row of the first shard failed ({reasons}), so the run was ended; "
                    f"the first: {failures[0].message}"
                )
            commit(ledger, shard, ShardResult(failures=failures))
        loss += done["loss"]
        assigned += done["assigned"]
        quarantined += done["quarantined"] + len(failures)
        rows += shard.rows
        example = done["example"] or (failures[0].message if failures else example)
        if rows >= MANY_ROWS and quarantined > job.max_failure_rate * rows:
            raise RunFailed(
                f"{quarantined:.0f} of {rows} rows so far are quarantined, more than --max-failure-rate "
                f"{job.max_failure_rate:g} allows; one of them: {example}"
            )
        note = f"mean loss {loss / assigned:.4f}" if assigned else ""
        progress.advance(shard.rows, note + (f", {quarantined:.0f} quarantined" if quarantined else ""))
    progress.close()


if __name__ == "__main__":
    from rayjobs.cli import main

    sys.exit(main(["assign", *sys.argv[1:]]))
