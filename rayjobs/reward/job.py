"""Test-time reward optimisation: `ortho reward` searches, for each prompt, the noise whose image has the highest reward.

One prompt is searched in this process, with pictures and curves. A file of prompts goes through the pool of `assign`, with the
same slots, ledger, quarantine and resume. The results are assignments. Their target latents are those of the images that were
found, so `ortho train --noise base` distils these images into the model.
"""

from pydantic import JsonValue

from ortho_core.errors import UserError
from ortho_core.estep.space import noise_space
from ortho_core.generators.loaded_files import planned_fingerprint
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.marks import decides, settings
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import PromptFields, Shard
from ortho_core.records.assignments import Assignments
from ortho_core.records.plan import NoiseSettings, RewardPlan
from ortho_core.rewards.names import parse_rewards, reward_fingerprints
from rayjobs.pool.driver import work_through
from rayjobs.pool.run import ShardedRun
from rayjobs.reports.next_steps import RETRY, left_out, settled_rows, training
from rayjobs.reports.summaries import RewardSummary
from rayjobs.reports.words import counted
from rayjobs.reward.config import RewardJob
from rayjobs.reward.gains import gains
from rayjobs.reward.memory import memory_of
from rayjobs.reward.pictures import take_pictures
from rayjobs.reward.report import write_report
from rayjobs.reward.worker import search_of
from rayjobs.verb.console import say
from rayjobs.verb.models import open_model
from rayjobs.verb.pairs import open_pairs
from rayjobs.verb.paths import located
from rayjobs.verb.session import ray_session


def check(job: RewardJob, model: ModelFolder) -> dict[str, str]:
    """Fingerprints of the rewards' weights. Raises UserError for everything that can be checked before a model is loaded."""
    noise_space(job, model.latent_shape)
    if (job.prompt is None) == (job.prompts is None):
        raise UserError("give --prompt TEXT or --prompts FILE, and not both")
    if job.prompt is not None and not job.prompt.strip():
        raise UserError("--prompt is blank")
    if job.prompt is not None and "://" in job.out:
        raise UserError(f"--out {job.out}: with --prompt accepted: a local folder; only with --prompts a URL")
    if job.save_steps and job.prompts is not None:
        raise UserError("--save-steps works only with --prompt; with --prompts the steps have no pictures")
    names = parse_rewards(job.reward)
    reported = parse_rewards(job.report_rewards) if job.report_rewards else {}
    if both := sorted(set(names) & set(reported)):
        raise UserError(f"--report-rewards: {', '.join(both)} is in --reward, and is reported anyway; leave it out")
    return reward_fingerprints([*names, *reported], job.folders())


def make_plan(job: RewardJob, model: ModelFolder) -> tuple[RewardPlan, PairSet, list[Shard]]:
    """The plan, the prompts and the shards of a run over a file of prompts. Raises UserError."""
    weights = check(job, model)
    assert job.prompts is not None
    rows = open_pairs(job.prompts, PromptFields(prompt_field=job.prompt_field, id_field=job.id_field), "prompts")
    rows_per_shard = job.rows_per_shard or rows.rows_per_shard()
    shards = rows.shards(rows_per_shard)
    config = settings(job, decides)
    report_rewards = config.pop("report_rewards")
    noise = {name: config.pop(name) for name in ("seed", "transform", "patch_size", "regions", "store")}
    plan = RewardPlan(
        pairs_fingerprint=rows.fingerprint(),
        model_fingerprint=planned_fingerprint(model, job.dtype),
        # The latents that are found are the targets of a later training.
        noise=NoiseSettings(**noise, store_latents=True),
        rewards=parse_rewards(job.reward),
        report_rewards=report_rewards,
        reward_fingerprints=weights,
        config=config,
        rows=rows.rows(),
        rows_per_shard=rows_per_shard,
        shards=len(shards),
    )
    return plan, rows, shards


def describe(job: RewardJob) -> dict[str, object]:
    """What a dry run prints. For a file of prompts it times a few evaluations on a worker like those of the run."""
    model = open_model(job.model, job.dtype, job.lora, job.quantize, job.size)
    if job.prompt is not None:
        weights = check(job, model)
        planned = {} if job.gpu_memory is None else {"memory": memory_of(job, model, weights, 1, 1)}
        return {"reward_fingerprints": weights, "evaluations_at_most": job.steps, **planned, "out": job.out}
    from rayjobs.pool.timing import seconds_per_evaluation

    plan, rows, _ = make_plan(job, model)
    evaluations = plan.rows * job.steps
    content = {**plan.as_json(), "recognised": rows.record(), "evaluations_at_most": evaluations}
    if job.gpu_memory is not None:  # the speed of the planned GPU cannot be measured here
        memory = memory_of(job, model, plan.reward_fingerprints, plan.rows, plan.rows_per_shard)
        return {**content, "memory": memory, "out": job.out}
    timing = seconds_per_evaluation(job, search_of(job, model, plan, rows))
    least = min(max(1, job.pool_size[1]), plan.shards)
    return {
        **content,
        **timing.as_json(),
        "hours_at_most": round(timing.hours(evaluations) / least, 3),
        "out": job.out,
    }


def run(job: RewardJob) -> int:
    """Search for the prompts that are not done yet. Returns 0, or 3 if rows are in quarantine. Raises UserError or RunFailed."""
    model = open_model(job.model, job.dtype, job.lora, job.quantize, job.size)
    if job.prompt is not None:
        from rayjobs.reward.one_prompt import run_one

        return run_one(job, model, check(job, model))
    job = located(job)
    plan, rows, shards = make_plan(job, model)
    begun = ShardedRun(job.out, plan, job.retry_failures, job.verify)
    if begun.is_complete(page=begun.survey.rows > begun.survey.quarantined):
        return begun.exit_code
    with ray_session():
        if begun.survey.todo:
            work_through(job, begun.ledger, begun.survey, shards, search_of(job, model, plan, rows))
        begun.finish()
        noise = begun.check_noise(model)
        summary = begun.summary(
            job, recognised=rows.record(), rewards=gained(job, plan) if begun.counts.assigned else {}, **noise
        )
        if begun.counts.assigned:
            take_pictures(job, model)
            write_report(begun.ledger.folder, RewardSummary.model_validate(summary))
    return begun.conclude(summary, "prompts could be used")  # last, so that a folder with a summary also has its report


def gained(job: RewardJob, plan: RewardPlan) -> dict[str, dict[str, JsonValue]]:
    """Print the gain of each reward over all prompts, and return it ready for JSON."""
    rewards = gains(Assignments(job.out))
    for name, gain in rewards.items():
        kind = "" if name in plan.rewards else " (not optimised)"
        rose = f"higher for {gain.improved:.1%} of the prompts"
        say(f"reward: {name}{kind} {gain.before:.4f} → {gain.after:.4f}, {rose}")
    return {name: gain.model_dump(mode="json") for name, gain in rewards.items()}


def ending(job: RewardJob, code: int) -> list[str]:
    """The last lines of the command for a file of prompts; for one prompt, `run_one` prints them."""
    if job.prompt is not None:
        return []
    assigned, quarantined = settled_rows(job.out)
    searched = counted(assigned, "prompt")
    return [
        f"reward: noise found for {searched}, in {job.out}; see report.html there",
        *left_out(job.out, code, quarantined, RETRY),
        *training(job.model, job.lora, job.out, noise="base"),
    ]
