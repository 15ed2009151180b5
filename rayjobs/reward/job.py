"""Test-time reward optimisation: `ortho reward` finds, for each prompt, the noise whose image the rewards like best.

One prompt is worked on in this process, with pictures and curves. A file of prompts goes through the pool of `assign`: the
same slots, ledger, quarantine and resume. What it leaves are assignments whose target latents are those of the images that
were found, so `ortho train --noise base` distils them into the model.
"""

import json
import time
from typing import Any

from ortho_core.errors import RunFailed
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.marks import decides, settings
from ortho_core.pairs import PairSet, Shard
from ortho_core.pairs.rows import PromptFields
from ortho_core.records.assignments import Assignments
from ortho_core.records.diagnostics import write_gaussianity
from ortho_core.rewards import parse_rewards
from rayjobs.pool.driver import work_through
from rayjobs.pool.ledger import Ledger
from rayjobs.reward.config import RewardJob, check
from rayjobs.reward.gains import gains
from rayjobs.reward.pictures import take_pictures
from rayjobs.reward.report import write_report
from rayjobs.reward.worker import RewardActor
from rayjobs.verb.console import say, summary_json
from rayjobs.verb.paths import located
from rayjobs.verb.plan import claim
from rayjobs.verb.session import ray_session


def make_plan(job: RewardJob, model: ModelFolder) -> tuple[dict[str, Any], PairSet, list[Shard]]:
    """What the run over a file of prompts will do. Raises UserError."""
    weights = check(job, model)
    assert job.prompts is not None
    rows = PairSet(job.prompts, PromptFields(prompt_field=job.prompt_field, id_field=job.id_field))
    rows_per_shard = job.rows_per_shard or rows.rows_per_shard()
    shards = rows.shards(rows_per_shard)
    own = {"store_latents": True, "reward": parse_rewards(job.reward)}
    plan = {
        "pairs_fingerprint": rows.fingerprint(),
        "model_fingerprint": model.fingerprint,
        "reward_fingerprints": weights,
        "config": settings(job, decides) | own,
        "warm_start": None,
        "rows": rows.rows(),
        "rows_per_shard": rows_per_shard,
        "shards": len(shards),
    }
    return Ledger.seal(plan), rows, shards


def plan(job: RewardJob) -> dict[str, Any]:
    """What a dry run prints."""
    model = ModelFolder.open(job.model)
    if job.prompt is not None:
        return {"reward_fingerprints": check(job, model), "evaluations_at_most": job.steps, "out": job.out}
    from rayjobs.pool.timing import seconds_per_evaluation

    content, _, _ = make_plan(job, model)
    timing = seconds_per_evaluation(job, model, content["rows_per_shard"], RewardActor)
    evaluations = content["rows"] * job.steps
    hours = evaluations * timing["seconds_per_evaluation"] / 3600
    least = min(max(1, job.pool_size[1]), content["shards"])
    return {
        **content,
        "evaluations_at_most": evaluations,
        **timing,
        "hours_at_most": round(hours / least, 3),
        "out": job.out,
    }


def run(job: RewardJob) -> int:
    """Optimise what is not done yet. Returns 0, or 3 if rows were quarantined. Raises UserError or RunFailed."""
    model = ModelFolder.open(job.model)
    if job.prompt is not None:
        from rayjobs.reward.one_prompt import run_one

        check(job, model)
        return run_one(job, model)
    job = located(job)
    sealed, rows, shards = make_plan(job, model)
    folder = claim(job.out, sealed, "reward")
    ledger = Ledger(folder, sealed)
    todo, done, quarantined = ledger.survey(job.retry_failures)
    if not todo and folder.exists("summary.json"):
        say(f"reward: {job.out} is complete")
        return 3 if quarantined else 0
    started = time.monotonic()
    with ray_session():
        tasks = [(task, shards[task.shard]) for task in todo]
        if tasks:
            work_through(job, ledger, rows, [model], tasks, done, quarantined, RewardActor, "reward")
        return conclude(job, model, ledger, sealed["rows"] - done, time.monotonic() - started)


def conclude(job: RewardJob, model: ModelFolder, ledger: Ledger, rows_this_run: int, seconds: float) -> int:
    """Reconcile, say what was gained, take pictures, write report and summary. Returns the exit code."""
    counts = ledger.finish()
    rewards: dict[str, dict[str, Any]] = {}
    if counts["assigned"]:
        counts["gaussianity"] = write_gaussianity(ledger.folder, model.latent_shape)
        say(f"reward: {counts['gaussianity']}")
        rewards = gains(Assignments(job.out))
        optimised = ledger.plan["config"]["reward"]
        for name, figures in rewards.items():
            kind = "" if name in optimised else " (not optimised)"
            say(
                f"reward: {name}{kind} {figures['before']:.4f} → {figures['after']:.4f}, higher for "
                f"{figures['improved']:.1%} of the prompts"
            )
    summary = {
        **counts,
        "rewards": rewards,
        "rows_this_run": rows_this_run,
        "seconds_this_run": round(seconds, 2),
        "config": job.model_dump(mode="json"),
        "run_fingerprint": ledger.plan["run_fingerprint"],
    }
    content = summary_json(summary)
    if counts["assigned"]:
        take_pictures(job, model)
        write_report(ledger.folder, json.loads(content))
    ledger.folder.replace("summary.json", content.encode())  # last: what has its summary has its report
    if not counts["assigned"]:
        raise RunFailed(f"none of the {counts['rows']} prompts could be used; see {job.out}/failures.jsonl")
    return 3 if counts["quarantined"] else 0
