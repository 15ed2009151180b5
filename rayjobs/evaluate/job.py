"""`ortho evaluate`: held-out metrics of one or more models, side by side.

A pool of workers judges the held-out rows once for each model, and writes one part file per shard. From these files come
`evaluation.json` and `.parquet`, the contact sheets in `pictures/`, and the printed table.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ortho_core.errors import UserError
from ortho_core.evaluation.features import find_features
from ortho_core.evaluation.rows import SPREAD_PROMPTS
from ortho_core.generators.bucket_sizes import own_size
from ortho_core.generators.loaded_files import planned_fingerprint
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.marks import decides, settings
from ortho_core.noise.rotation import block_dimension
from ortho_core.pairs.decoding import usable_rows
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Shard
from ortho_core.records.plan import Settings
from ortho_core.storage.open import open_store
from rayjobs.evaluate.config import EvaluateJob, judged_framing
from rayjobs.evaluate.figures import Parts, check_judged, count_in_training, draw, judge_all, table_of, write_failures
from rayjobs.evaluate.plan import PARTS, EvaluationPlan, take_base_from
from rayjobs.evaluate.report import write_report
from rayjobs.evaluate.worker import Judging, folders_of_rewards, judge_models, judges_used, reward_names, searched_by
from rayjobs.pool.derived import REPORT, is_whole, is_whole_page, receipts_in
from rayjobs.pool.driver import work_through
from rayjobs.pool.ledger import Ledger
from rayjobs.pool.memory import described, smaller
from rayjobs.pool.run import exit_code
from rayjobs.reports.framed import say_taken
from rayjobs.reports.next_steps import left_out
from rayjobs.reports.summaries import EVALUATION, Evaluation, FeatureSource, FeatureSources
from rayjobs.verb.console import say
from rayjobs.verb.models import open_model
from rayjobs.verb.pairs import open_pairs
from rayjobs.verb.paths import located
from rayjobs.verb.plan import claim

#: Files that hold the judges' weights.
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth")


def open_models(job: EvaluateJob) -> dict[str, ModelFolder]:
    """The job's models by name. Raises UserError."""
    if unknown := sorted(job.lora.keys() - job.model.keys() - {""}):
        raise UserError(f"--lora names {', '.join(unknown)}; accepted: the models {', '.join(job.model)}")
    every = job.lora.get("", ())
    models = {
        name: open_model(folder, job.dtype, (*every, *job.lora.get(name, ())), job.quantize)
        for name, folder in job.model.items()
    }
    # At the sizes of the base model: a fine-tuned one may have been trained at others than it had before.
    framing = judged_framing(job, next(iter(models.values()))) if models else None
    return {name: model if framing is None else model.at(framing.main) for name, model in models.items()}


def check(job: EvaluateJob, models: Mapping[str, ModelFolder]) -> None:
    """Raises UserError for options or models that are not accepted."""
    if not models:
        raise UserError("--model is empty; accepted: FOLDER,FOLDER or NAME=FOLDER,NAME=FOLDER")
    base = next(iter(models))
    for name, model in models.items():
        if not name or "/" in name:
            raise UserError(
                f"--model: {name!r} is not accepted as a name, since it names picture files; accepted: one without /"
            )
        block_dimension(model.at(judged_framing(job, models[base]).main).latent_shape, job.patch_size)
    shapes = {name: (model.latent_shape, model.image_size) for name, model in models.items()}
    if len(set(shapes.values())) > 1:
        raise UserError(f"--model: the models make images of different shapes, which cannot be compared: {shapes}")
    if job.rewards is not None and ":" in job.rewards:
        raise UserError(
            f"--rewards {job.rewards}: rewards are reported one by one and have no weights here; accepted: NAME,NAME"
        )
    if job.reward_folders is not None and (unused := sorted(job.reward_folders.keys() - _used(job))):
        raise UserError(f"--reward-folders: {unused[0]} is not one of --rewards {job.rewards}")
    if find_features(job.cmmd_features, Path(job.rewards_root), "--cmmd-features").kind != "clip":
        raise UserError(
            f"--cmmd-features {job.cmmd_features}: CMMD needs CLIP embeddings; accepted: tiny-clip, or a CLIP model's folder"
        )


def _used(job: EvaluateJob) -> set[str]:
    names = {*reward_names(job), *(job.rewards or "").split(",")}
    return names | ({"clip"} if "aesthetic" in names else set())


def make_plan(
    job: EvaluateJob, models: Mapping[str, ModelFolder], pairs: PairSet | None = None
) -> tuple[EvaluationPlan, PairSet, list[Shard]]:
    """The plan, the pair set and the tasks. `pairs` is the job's pair set if the caller has opened it already.

    Raises UserError for everything that can be checked before the run.
    """
    check(job, models)
    base = next(iter(models.values()))
    if pairs is None:
        pairs = open_pairs(job.pairs, job.pair_fields(), "held-out pairs")
    pairs = pairs.spread(job.rows)
    shards = heldout_shards(pairs, job.rows, job.rows_per_shard)
    rows = sum(shard.rows for shard in shards)
    plan = EvaluationPlan(
        pairs_fingerprint=pairs.fingerprint(),
        base=next(iter(models)),
        models={name: planned_fingerprint(model, job.dtype) for name, model in models.items()},
        **dict(judges_used(job, judge_models(job))),
        config=settings(job, decides) | judged_framing(job, base).settings(own_size(base)),
        diversity_prompts=tuple(first_prompts(pairs, shards)),
        heldout_rows=rows,
        rows=rows * len(models),
        rows_per_shard=job.rows_per_shard,
        shards=len(shards) * len(models),
    )
    tasks = [replace(shard, index=m * len(shards) + shard.index) for m in range(len(models)) for shard in shards]
    return plan, pairs, tasks


def heldout_shards(pairs: PairSet, rows: int, rows_per_shard: int) -> list[Shard]:
    """The first `rows` rows, in shards."""
    shards = []
    for shard in pairs.shards(rows_per_shard):
        if rows <= 0:
            break
        shards.append(shard.shortened(rows))
        rows -= shard.rows
    return shards


def first_prompts(pairs: PairSet, shards: list[Shard]) -> list[str]:
    """The first different prompts of the rows."""
    prompts: dict[str, None] = {}
    for shard in shards:
        for pair in usable_rows(pairs, shard, []):
            prompts[pair.prompt] = None
            if len(prompts) == SPREAD_PROMPTS:
                return list(prompts)
    return list(prompts)


def describe(job: EvaluateJob) -> dict[str, Any]:
    """What a dry run prints."""
    models = open_models(job)
    plan, pairs, _ = make_plan(job, models)
    say_taken(pairs, judged_framing(job, models[plan.base]))
    Y, X = models[plan.base].image_size
    return {
        **plan.as_json(),
        "recognised": pairs.record(),
        "evaluations": plan.rows * job.steps,
        # Three PNGs per row and model, and each target once; a photograph takes about two bytes per pixel.
        "bytes_to_write_at_most_about": (3 * plan.rows + plan.heldout_rows) * (3 * Y * X + 8192),
        **(
            {}
            if job.gpu_memory is None
            else {"memory": memory_of(job, models[plan.base], plan.rows_per_shard, plan.rows)}
        ),
        "writes": [EVALUATION, "evaluation.parquet", "failures.jsonl", "pictures/", f"{PARTS}/"],
        "out": str(job.out),
    }


def memory_of(job: EvaluateJob, model: ModelFolder, rows_per_shard: int, rows: int) -> dict[str, object]:
    """What a dry run reports for a GPU of `job.gpu_memory` GiB."""
    assert job.gpu_memory is not None
    judges = judge_models(job)
    folders = {judges.features.folder, *([judges.cmmd.folder] if judges.cmmd is not None else [])}
    named = folders_of_rewards(job)
    folders |= {named.get(name, named[""] / name) for name in _used(job)}
    weights = (file for folder in folders for kind in WEIGHT_FILES for file in folder.glob(kind))
    size = sum(file.stat().st_size for file in weights)
    here = searched_by(job, model, rows_per_shard, rows, size)
    return described(here, job.gpus_per_worker, job.gpu_memory, smaller(here))


def run(job: EvaluateJob, models: Mapping[str, ModelFolder] | None = None) -> int:
    """Judge every model, write figures and pictures. `models` are the job's models if the caller has opened them already.

    Returns 0, or 3 if rows were quarantined. Raises UserError or RunFailed.
    """
    is_step, models = models is not None, models or open_models(job)
    plan, pairs, tasks = make_plan(job, models)
    if not is_step:  # a verb with this step says it itself
        say_taken(pairs, judged_framing(job, models[plan.base]))
    here = located(job)
    folder = claim(here.out, plan)
    ledger = Ledger(folder.child(PARTS), plan)
    if job.base_from is not None:
        take_base_from(job.base_from, ledger)
    survey = ledger.survey(verify=job.verify)
    started, seconds = time.monotonic(), None
    if survey.todo:
        with here.session():
            work_through(here, ledger, survey, tasks, Judging(here, models, plan, pairs))
        seconds = round(time.monotonic() - started, 2)
    if survey.todo or not is_whole(folder, EVALUATION, job.verify) or not is_whole_page(folder, REPORT):
        conclude(here, models[plan.base], ledger, pairs.record(), seconds)
    evaluation = Evaluation.read(here.out / EVALUATION)
    say(table_of(evaluation.metrics))
    if flattery := evaluation.flattery():
        say(f"evaluate: {flattery}")
    return exit_code(evaluation.quarantined)


def conclude(
    job: EvaluateJob,
    base: ModelFolder,
    ledger: Ledger[EvaluationPlan],
    recognised: Settings,
    seconds: float | None,
) -> None:
    """Check that every row is accounted for; write figures, table, pictures and report. `seconds`: of judging, in this run."""
    plan, out = ledger.plan, open_store(job.out)
    parts = Parts(ledger)
    quarantined = write_failures(parts, out)
    check_judged(parts, plan.heldout_rows, quarantined)
    in_training = count_in_training(parts, job.trained_on) if job.trained_on is not None else None
    sizes = judged_framing(job, base).sizes
    metrics, by_size = judge_all(parts, out, job.seed, plan.own_cmmd, len(sizes) > 1)
    cell = (max(Y for Y, _ in sizes), max(X for _, X in sizes))
    draw(parts, job.out / "pictures", cell)
    ledger.folder.sweep()
    D = parts.matrix(plan.base, "features").shape[1]
    cmmd_D = parts.matrix(plan.base, "cmmd_features").shape[1] if plan.own_cmmd else D
    cmmd = FeatureSource(**plan.cmmd_features.model_dump(), dimension=cmmd_D)
    evaluation = Evaluation(
        base=plan.base,
        rows=parts.count,
        quarantined=quarantined,
        recognised=recognised,
        in_training=in_training,
        metrics=metrics,
        by_size=by_size,
        features=FeatureSources(**plan.features.model_dump(), dimension=D, cmmd=cmmd),
        rewards=plan.rewards,
        image_size=cell,
        evaluations_per_image=job.steps,
        files=receipts_in(out, EVALUATION),
        seconds_this_run=seconds,
        config=job.model_dump(mode="json"),
    )
    out.replace(EVALUATION, evaluation.text().encode())
    write_report(job.out)


def ending(job: EvaluateJob, code: int) -> list[str]:
    """The last lines of the command."""
    rows = Evaluation.read(job.out / EVALUATION).quarantined
    return [f"evaluate: figures, intervals and pictures are in {job.out}/{REPORT}", *left_out(job.out, code, rows)]
