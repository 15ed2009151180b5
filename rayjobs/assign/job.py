"""The E-step job: `ortho assign` finds, for every image of a pair set, the noise that the model maps closest to it.

A Ray Data actor pool processes shards of rows. Each actor loads the model once and writes one part file per shard.
"""

import math
from contextlib import nullcontext
from dataclasses import replace

from ortho_core.errors import UserError
from ortho_core.estep.space import noise_space
from ortho_core.framing.framing import Framing
from ortho_core.generators.bucket_sizes import own_size
from ortho_core.generators.compiled import check_compiled
from ortho_core.generators.loaded_files import planned_fingerprint
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.marks import decides, settings
from ortho_core.memory.plan import MOST_SLOTS
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Shard
from ortho_core.records.assignments import Assignments
from ortho_core.records.plan import AssignmentPlan, NoiseSettings, ReconstructionPlan, differences
from ortho_core.storage.open import open_store
from ortho_core.storage.store import Store
from rayjobs.assign.config import AssignJob, assigned_framing
from rayjobs.assign.report import write_report
from rayjobs.assign.worker import search_of
from rayjobs.pool.derived import REPORT, is_whole_page
from rayjobs.pool.driver import work_through
from rayjobs.pool.memory import Searched, described, smaller
from rayjobs.pool.prompt_pass import Encoding, fill, prompts_of
from rayjobs.pool.run import ShardedRun
from rayjobs.reports.framed import say_taken
from rayjobs.reports.next_steps import RETRY, left_out, settled_rows, training
from rayjobs.reports.words import counted
from rayjobs.verb.console import say
from rayjobs.verb.models import open_model
from rayjobs.verb.pairs import open_pairs
from rayjobs.verb.paths import located


def make_plan(job: AssignJob, model: ModelFolder) -> tuple[ReconstructionPlan, PairSet, list[Shard]]:
    """The plan, the pair set and its shards; reads only the input. Raises UserError for every error found before the run."""
    framing = assigned_framing(job, model)
    noise_space(job, model.at(framing.main).latent_shape)
    job.check_prompt_embeddings(model)
    check_compiled(job.compile, len(framing.sizes))
    pairs = open_pairs(job.pairs, job.pair_fields())
    rows_per_shard = job.rows_per_shard or pairs.rows_per_shard()
    shards = pairs.shards(rows_per_shard)
    config = settings(job, decides) | framing.settings(own_size(model))
    noise = NoiseSettings(**{name: config.pop(name) for name in NoiseSettings.model_fields})
    plan = ReconstructionPlan(
        pairs_fingerprint=pairs.fingerprint(),
        model_fingerprint=planned_fingerprint(model, job.dtype),
        noise=noise,
        config=config,
        rows=pairs.rows(),
        rows_per_shard=rows_per_shard,
        shards=len(shards),
    )
    if job.warm_start:
        earlier = Assignments(job.warm_start).plan
        check_warm_start(job, earlier, plan)
        plan = plan.model_copy(update={"warm_start": earlier.run_fingerprint})
    return plan, pairs, shards


def opened(job: AssignJob, model: ModelFolder | None = None) -> tuple[ModelFolder, Framing]:
    """The job's model, at the main size of its images, and these sizes; `model` if the caller has opened it. Raises UserError."""
    model = model or open_model(job.model, job.dtype, job.lora, job.quantize)
    framing = assigned_framing(job, model)
    return model.at(framing.main), framing


def check_warm_start(job: AssignJob, earlier: AssignmentPlan, plan: ReconstructionPlan) -> None:
    """Raises UserError, naming what differs, if the search cannot start from the assignments of `earlier`."""
    noise = {"seed", "transform", "patch_size", "regions"}
    if (
        job.candidates > 1
    ):  # the base noise is the one that the earlier run chose, so it must have had as many candidates
        noise |= {"candidates"}
    before, now = (
        {
            "kind": one.kind,
            "pairs_fingerprint": one.pairs_fingerprint,
            "rows_per_shard": one.rows_per_shard,
            **one.noise.model_dump(include=noise),
            **one.size_settings,
        }
        for one in (earlier, plan)
    )
    if differing := differences(before, now):
        raise UserError(f"--warm-start {job.warm_start} does not fit this run: " + "; ".join(differing))


def describe(job: AssignJob) -> dict[str, object]:
    """What a dry run prints; times a few evaluations on a worker with the run's settings."""
    from rayjobs.pool.timing import seconds_per_evaluation

    model, framing = opened(job)
    plan, pairs, _ = make_plan(job, model)
    say_taken(pairs, framing)
    C, H, W = shape = model.latent_shape
    numbers = 0 if plan.noise.is_free else noise_space(job, shape).parameters
    record = 200 + 4 * numbers + 4 * math.prod(model.target_shape) * job.store_latents
    if job.store == "noise":
        record += 2 * C * H * W
    elif plan.noise.is_free:
        record += 4 * C * H * W
    draws = 0 if job.warm_start else 1
    evaluations = job.evaluations_at_most(plan.rows, draws)
    content: dict[str, object] = {
        **plan.as_json(),
        "recognised": pairs.record(),
        "evaluations_at_most": evaluations,
        "candidate_forwards": plan.rows * job.candidate_forwards * draws,
    }
    if job.gpu_memory is not None:  # the time on another GPU cannot be measured here
        return {**content, "memory": memory_of(job, model, plan.rows_per_shard, plan.rows), "out": job.out}
    timing = seconds_per_evaluation(job, search_of(job, model, plan, pairs))
    hours = timing.hours(evaluations)
    return {
        **content,
        **timing.as_json(),
        f"{'gpu' if timing.device == 'cuda' else 'worker'}_hours_at_most": round(
            hours * (timing.gpus_per_worker or 1), 3
        ),
        "hours_at_most": round(hours / min(max(1, job.pool_size[1]), plan.shards), 3),
        "bytes_to_write_about": plan.rows * record,
        "out": job.out,
    }


def memory_of(job: AssignJob, model: ModelFolder, rows_per_shard: int, rows: int) -> dict[str, object]:
    """What a dry run prints about the memory of a GPU of `job.gpu_memory` GiB."""
    assert job.gpu_memory is not None
    most = min(job.slots or MOST_SLOTS, rows_per_shard)
    here = Searched(
        model,
        job.dtype,
        job,
        most,
        rows,
        job.gradient_checkpointing,
        decodes=False,
        quantize=job.quantize,
        sizes=len(assigned_framing(job, model).sizes),
    )
    changes = smaller(here)
    if job.pixel_l1_weight:
        plain = job.model_copy(update={"pixel_l1_weight": 0.0})
        changes["set --pixel-l1-weight 0"] = replace(here, config=plain)
    return described(here, job.gpus_per_worker, job.gpu_memory, changes)


def run(job: AssignJob, model: ModelFolder | None = None) -> int:
    """Assign noise to the rows that have none yet; `model` is the job's model if the caller has opened it already.

    Returns 0, or 3 if rows were quarantined. Raises UserError or RunFailed.
    """
    is_step, (model, framing) = model is not None, opened(job, model)
    job = located(job)
    plan, pairs, shards = make_plan(job, model)
    begun = ShardedRun(job.out, plan, job.retry_failures, job.verify)
    folder = begun.ledger.folder
    if begun.is_complete():
        if job.report and begun.survey.rows > begun.survey.quarantined and not is_whole_page(folder, REPORT):
            with job.session():
                leave_report(job, model, pairs, folder)
        return begun.exit_code
    if begun.survey.todo and not is_step:  # a verb with this step says it itself
        say_taken(pairs, framing)
    with job.session() if begun.survey.todo or job.report else nullcontext():
        if begun.survey.todo:
            if job.prompt_embeddings is not None:
                encoding = Encoding(job.prompt_embeddings, model, job.dtype, job.quantize)
                todo = [shards[task.shard] for task in begun.survey.todo]
                fill(job, job.pool_size, encoding, prompts_of(pairs, todo), plan.verb)
            work_through(job, begun.ledger, begun.survey, shards, search_of(job, model, plan, pairs))
        begun.finish()
        noise = begun.check_noise(model)
        folder.remove(REPORT)  # an earlier run's report may show other rows
        code = begun.conclude(begun.summary(job, recognised=pairs.record(), **noise), "rows could be assigned")
        if job.report:
            leave_report(job, model, pairs, folder)
    return code


def leave_report(job: AssignJob, model: ModelFolder, pairs: PairSet, folder: Store) -> None:
    """Write the report of a finished run. An error is printed; the run stays finished."""
    try:
        write_report(job, model, pairs, folder)
    except Exception as error:
        why = " ".join(str(error).split())[:300] or type(error).__name__
        say(
            f"assign: {REPORT} could not be written ({why}); the run is complete; run the same command again to write it"
        )
    else:
        say(f"assign: the report is {folder.location}/{REPORT}")


def ending(job: AssignJob, code: int) -> list[str]:
    """The last lines of the command."""
    assigned, quarantined = settled_rows(job.out)
    report = f", {REPORT} there shows it" if open_store(job.out).exists(REPORT) else ""
    return [
        f"assign: {counted(assigned, 'image has its', 'images have their')} noise, in {job.out}{report}",
        *left_out(job.out, code, quarantined, RETRY),
        *training(job.model, job.lora, job.out),
    ]
