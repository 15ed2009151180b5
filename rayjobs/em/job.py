"""The EM driver: `ortho em` alternates assigning noise (E-step) and fine-tuning on it (M-step), then judges and reports."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from ortho_core.errors import UserError
from ortho_core.estep.space import noise_space
from ortho_core.evaluation.statistics import FEWEST_ROWS
from ortho_core.generators.bucket_sizes import own_size
from ortho_core.generators.compiled import check_compiled
from ortho_core.generators.lora_files import READERS
from ortho_core.generators.model_folder import CLASS_KIND, ModelFolder, check_quantize
from ortho_core.marks import decides, resolved, settings
from ortho_core.mstep.elsewhere import general_prompts
from ortho_core.mstep.matching import match_search
from ortho_core.pairs.hold_out import held_out_of
from ortho_core.pairs.prompt_file import read_prompts
from ortho_core.records.plan import Plan, Settings
from ortho_core.storage.lease import Lease, held
from rayjobs.assign import job as assign
from rayjobs.assign.config import AssignJob, AssignSettings
from rayjobs.em.config import NO_HELDOUT, USUAL_HELDOUT, EmJob
from rayjobs.em.report import write_report
from rayjobs.em.steps import assign_job, baseline_job, cached, heldout_job, judge_job, train_job
from rayjobs.evaluate import job as evaluate
from rayjobs.evaluate.config import EvaluateSettings
from rayjobs.evaluate.figures import TooFewJudged
from rayjobs.pool.ledger import ASSIGN_SUMMARY
from rayjobs.reports.framed import say_taken
from rayjobs.reports.next_steps import generating
from rayjobs.reports.summaries import (
    EM_SUMMARY,
    EVALUATION,
    AssignSummary,
    Cycle,
    EmSummary,
    Evaluation,
    TrainSummary,
    cycle_name,
)
from rayjobs.reports.words import counted
from rayjobs.train import job as train
from rayjobs.train.config import TrainSettings
from rayjobs.train.memory import Updates
from rayjobs.train.memory import memory_of as train_memory
from rayjobs.train.models import TrainModels, check_lora, check_single_file
from rayjobs.training.run_files import TRAIN_SUMMARY
from rayjobs.training.trackers import check as check_trackers
from rayjobs.verb.console import say
from rayjobs.verb.faults import of_step
from rayjobs.verb.image_size import as_options
from rayjobs.verb.models import open_model
from rayjobs.verb.pairs import open_pairs
from rayjobs.verb.plan import claim, replace_text
from rayjobs.verb.session import ray_session

if TYPE_CHECKING:
    from ray.train import UserCallback

#: A drift (RMS distance of pixels in [0, 1]) below which a model makes nearly the images of the first one: 2.5 grey levels.
HARDLY = 0.01
#: What `--heldout auto` holds out: 1/20 of the rows, at least 16 rows, at most 1/5 of them.
USUAL_SHARE, USUAL_LEAST, MOST_SHARE = 20, 16, 5


def check(job: EmJob, model: ModelFolder, rows: int) -> None:
    """Raises UserError for settings that contradict each other, or do not fit the model or a pair set of `rows` rows."""
    framing = job.framing(model)
    shape = model.at(framing.main).latent_shape
    noise_space(job.assign, shape)
    for group, compiles in (("assign.", job.assign.compile), ("train.", job.train.compile)):
        check_compiled(compiles, len(framing.sizes), group)
    job.train.check_shares(rows, f"rows of {job.pairs}", "train.")
    if job.validate_on_heldout and (job.heldout_place is None or not job.assign.store_latents):
        raise UserError("--validate-on-heldout needs --heldout and --assign.store-latents")
    if job.train.noise not in ("matched", "online"):
        raise UserError(
            f"--train.noise {job.train.noise}: em accepts matched and online (noise that is matched again while training); "
            "--baseline adds direct SFT beside it"
        )
    job.train.check_noise("train.")
    if job.train.noise == "online":
        noise_space(match_search(job.train, job.train, job.assign), shape)
    check_trackers(job.train)
    job.check_prompt_embeddings(model)
    for group, step in (("assign.", job.assign), ("evaluate.", job.evaluate)):
        check_quantize(model, step.quantize, group)
    check_lora(job.train, model, "train.")
    check_single_file(job.train, model, "train.")
    if job.train.preserve_file is not None:
        read_prompts(job.train.preserve_file)


class EmPlan(Plan):
    """What an EM run will do."""

    verb: ClassVar[str] = "em"

    kind: Literal["em"] = "em"
    pairs_fingerprint: str
    heldout_fingerprint: str | None
    model_fingerprint: str
    rows: int
    config: Settings
    assign: Settings
    train: Settings
    evaluate: Settings


def settled(job: EmJob, records: int) -> EmJob:
    """The job with `--heldout auto` replaced by a number of the `records`. Raises UserError for a share that is too small."""
    if job.part is not None and (job.heldout == USUAL_HELDOUT or job.share is not None):
        raise UserError(
            f"--part {job.part}: em divides the pairs by --heldout; leave --part out, or add --heldout none or another pair set"
        )
    if job.share is not None and held_out_of(job.share, records) < FEWEST_ROWS:
        raise UserError(
            f"--heldout {job.share} of {records} rows: figures need {FEWEST_ROWS} rows; accepted: {FEWEST_ROWS} or more, the "
            "path of another pair set, or none"
        )
    if job.heldout != USUAL_HELDOUT:
        return job
    usual = max(USUAL_LEAST, (records + USUAL_SHARE // 2) // USUAL_SHARE)
    rows = min(usual, job.evaluate.rows, records // MOST_SHARE)
    if rows < FEWEST_ROWS:
        say(
            f"held-out pairs: none, and no evaluation: at most a fifth is held out, and of {records} rows that is fewer than "
            f"{FEWEST_ROWS} (--heldout {FEWEST_ROWS} holds them out anyway)"
        )
        return job.model_copy(update={"heldout": NO_HELDOUT})
    return job.model_copy(update={"heldout": str(rows)})


def make_plan(job: EmJob, model: ModelFolder) -> tuple[EmPlan, EmJob, dict[str, Settings | None]]:
    """The plan of the run, the job with `--heldout` settled, and how the pair sets were read.

    Raises UserError for everything that can be checked before the run.
    """
    pairs = open_pairs(job.pairs, job.pair_fields())
    requested, job = job, settled(job, pairs.records())
    all_pairs, heldout = pairs, None
    if job.share is not None:
        pairs, heldout = (all_pairs.part_named(f.part) for f in (job.training_fields(), job.heldout_fields()))
        usual = "" if requested.share else "; --heldout none trains on them too"
        say(f"held-out pairs: {heldout.counted()}, used only for the evaluation{usual}")
    total = pairs.rows()
    check(job, model, total)
    if job.heldout_place is not None:
        # Otherwise a missing file of the evaluation would stop the run only at its end.
        _, judged, _ = evaluate.make_plan(judge_job(job, {"base": job.model}), {"base": model}, heldout)
        heldout = heldout or judged
        if heldout.fingerprint() == pairs.fingerprint():
            say("held-out pairs: they are the training pairs, so their figures look too good")
    framing = job.framing(model)
    say_taken(pairs, framing)
    job = job.model_copy(update=as_options(framing, model))
    steps = ("assign", "train", "evaluate")
    recognised = {"recognised": pairs.record(), "recognised_heldout": heldout.record() if heldout is not None else None}
    plan = EmPlan(
        pairs_fingerprint=pairs.fingerprint(),
        heldout_fingerprint=heldout.fingerprint() if heldout is not None else None,
        model_fingerprint=model.fingerprint,
        rows=total,
        config={name: value for name, value in settings(job, decides).items() if name not in steps}
        | framing.settings(own_size(model)),
        # The plan of each step records what the step resolves.
        **{step: settings(getattr(job, step), decides, resolved) for step in steps},
    )
    return plan, job, recognised


def opened(job: EmJob) -> ModelFolder:
    """The job's model, at the main size of its images. Raises UserError."""
    model = open_model(job.model)
    return model.at(job.framing(model).main)


def describe(job: EmJob) -> dict[str, object]:
    """What a dry run prints."""
    model = opened(job)
    plan, job, recognised = make_plan(job, model)
    updates = job.train.epochs * (plan.rows // job.train.batch_size)
    matching = job.train.match_evaluations(updates, job.train.batch_size) if job.train.noise == "online" else 0
    return {
        **plan.as_json(),
        **recognised,
        **({} if job.gpu_memory is None else {"memory": memory_of(job, model, plan.rows)}),
        "heldout": job.heldout,
        "evaluations_of_the_e_steps": sum(
            job.assign.evaluations_at_most(plan.rows, draws=int(cycle == 0 or not job.warm_start))
            for cycle in range(job.cycles)
        ),
        "evaluations_of_matching": matching * job.cycles,
        "updates": updates * job.cycles * (2 if job.baseline else 1),
        "work_dir": str(job.work_dir),
    }


def memory_of(job: EmJob, model: ModelFolder, rows: int) -> dict[str, object]:
    """What a dry run reports for a GPU of `job.gpu_memory` GiB: the memory of each step."""
    search = match_search(job.train, job.train, job.assign) if job.train.noise == "online" else None
    trained = job.train.model_copy(update={"gpu_memory": job.gpu_memory})
    prompts = rows + len(general_prompts())
    updates = Updates(trained, TrainModels(model, model), bool(job.train.pixel_l1_weight), search, prompts)
    steps: dict[str, object] = {
        "assign": assign.memory_of(assign_job(job, 1, job.model), model, job.assign.rows_per_shard or rows, rows),
        "train": train_memory(updates),
    }
    if job.heldout_place is not None:
        judge = judge_job(job, {"base": job.model})
        steps["evaluate"] = evaluate.memory_of(judge, model, judge.rows_per_shard, judge.rows)
    return steps


def run(
    job: EmJob,
    e_step: Callable[[AssignJob, ModelFolder], int] = assign.run,
    watch: Callable[[int], Sequence["UserCallback"]] = lambda cycle: (),
    model: ModelFolder | None = None,
) -> int:
    """The EM algorithm. Every step resumes where it was ended, and returns at once if it is complete.

    `e_step` runs an E-step. `watch` returns the Ray Train callbacks for the M-step of a cycle. `model` is the job's model if
    the caller has opened it already. Returns 0, or 3 if rows are in quarantine. Raises UserError or RunFailed.
    """
    started = time.monotonic()
    first, requested = model or opened(job), job
    plan, job, recognised = make_plan(job, first)
    claim(job.work_dir, plan)
    with held(job.work_dir, "em", say) as lease:
        return _run(started, requested, job, first, recognised, lease, e_step, watch)


def _run(
    started: float,
    requested: EmJob,
    job: EmJob,
    first: ModelFolder,
    recognised: dict[str, Settings | None],
    lease: Lease,
    e_step: Callable[[AssignJob, ModelFolder], int],
    watch: Callable[[int], Sequence["UserCallback"]],
) -> int:
    # `place` is the folder as the user named it, for messages and records; a ModelFolder has the absolute path.
    place, model = job.model, first
    code, cycles, trained = 0, list[Cycle](), dict[str, ModelFolder]()

    def assigned(step: AssignJob, step_model: ModelFolder) -> int:
        lease.check()
        with of_step("assign", AssignSettings):
            return e_step(cached(job, step, step_model), step_model)

    with ray_session(), beside() as background:
        direct = None
        if job.validate_on_heldout:
            say("held-out pairs: searching the noise that the first model maps closest to each image")
            assigned(heldout_job(job), first)
        for cycle in range(1, job.cycles + 1):
            folder = job.work_dir / cycle_name(cycle)
            say(f"cycle {cycle} of {job.cycles}, E-step: searching the noise that {place} maps closest to each image")
            code = max(code, assigned(assign_job(job, cycle, place), model))
            if cycle == 1 and job.baseline and room_beside(job):
                say("baseline: direct SFT on random noise, beside the cycles")
                direct = background.submit(train.run, baseline_job(job), models=TrainModels(first, first))
            say(f"cycle {cycle} of {job.cycles}, M-step: fine-tuning on that noise")
            held = first if job.preserve_to == "first" else model
            with of_step("train", TrainSettings):
                train.run(train_job(job, place, folder), watch(cycle), TrainModels(model, held))
            place = folder / "train" / "checkpoint-final"
            model = trained[folder.name] = ModelFolder.open(place).at(first.image_size)
            cycles.append(cycle_of(cycle, folder))
        if job.baseline:
            say(f"baseline: direct SFT on random noise, {job.train.epochs * job.cycles} epochs")
            with of_step("train", TrainSettings):
                if direct is None:
                    train.run(baseline_job(job), models=TrainModels(first, first))
                else:
                    direct.result()
        evaluation = None
        if job.heldout_place is not None:
            say("evaluation on held-out pairs")
            models = {"base": first}
            if job.baseline:
                direct_model = job.work_dir / "direct" / "train" / "checkpoint-final"
                models["direct"] = ModelFolder.open(direct_model).at(first.image_size)
            models |= trained
            try:
                with of_step("evaluate", EvaluateSettings, TooFewJudged):
                    evaluate.run(judge_job(job, {name: one.path for name, one in models.items()}), models)
                evaluation = Evaluation.read(job.work_dir / "evaluation" / EVALUATION)
            except TooFewJudged as error:
                if requested.heldout != USUAL_HELDOUT:
                    raise
                say(f"no evaluation: {error}")
    summary = EmSummary(
        model=str(place),
        cycles=cycles,
        evaluation=evaluation.metrics if evaluation is not None else None,
        heldout_in_training=evaluation.in_training if evaluation is not None else None,
        **recognised,
        seconds_this_run=round(time.monotonic() - started, 1),
        config=requested.model_dump(mode="json"),
    )
    lease.check()
    replace_text(job.work_dir / EM_SUMMARY, summary.text())
    write_report(job.work_dir)
    say(f"done: the fine-tuned model is {place}, the report {job.work_dir / 'report.html'}")
    return code


@contextmanager
def beside() -> Iterator[ThreadPoolExecutor]:
    """A thread for work beside the cycles. If these fail, nothing waits for the thread: its work ends with Ray."""
    background = ThreadPoolExecutor(1)
    try:
        yield background
    finally:
        background.shutdown(wait=False, cancel_futures=True)


def room_beside(job: EmJob) -> bool:
    """Whether the cluster has room for the baseline's workers and those of an EM step at once, so that neither waits.

    False where this process trains (`--train.num-workers 0`): one process does not load two models in two threads.
    """
    if not job.train.num_workers:
        return False
    workers = 2 * job.train.world
    enough = job.train.fitting(workers) == workers
    fits = job.assign.cpus_per_worker <= job.train.cpus_per_worker and job.assign.gpus() <= job.train.gpus()
    return enough and fits and job.assign.node_labels == job.train.node_labels


def cycle_of(number: int, folder: Path) -> Cycle:
    """The summaries of the two steps of a cycle."""
    e_step = AssignSummary.read(folder / "assignments" / ASSIGN_SUMMARY)
    return Cycle(cycle=number, assign=e_step, train=TrainSummary.read(folder / "train" / TRAIN_SUMMARY))


def ending(job: EmJob, code: int) -> list[str]:
    """The last lines of the command."""
    summary = EmSummary.read(job.work_dir / EM_SUMMARY)
    some = (
        ["some rows were left out: failures.jsonl in the assignments of each cycle has the reasons"]
        if code == 3
        else []
    )
    size, adapter = None, list[str]()
    with suppress(UserError):  # the model may have moved since
        model = open_model(job.model)
        size = job.framing(model).usual(own_size(model))
        name = None if model.kind == CLASS_KIND else model.adapter.lora_elsewhere
        if name is not None and (file := Path(summary.model) / name).is_file():
            adapter = [f"for {READERS[name]}: {file}"]
    return [
        *some,
        *hardly_changed(summary),
        *adapter,
        generating(summary.model, job.work_dir / "images", size=size),
    ]


def hardly_changed(summary: EmSummary) -> list[str]:
    """A line if the last model makes nearly the images of the first one, so that nothing was learned."""
    judged = (summary.evaluation or {}).get(cycle_name(len(summary.cycles)), {})
    drift = judged.get("drift")
    if drift is None or drift.value >= HARDLY:
        return []
    updates = sum(cycle.train.updates for cycle in summary.cycles)
    return [
        f"the model hardly changed: its images differ from the base model's by {drift.value:.2g} (drift) after "
        f"{counted(updates, 'update')}; train longer or at a higher rate (--train.epochs, --train.lr)"
    ]
