"""Test-time reward optimisation: `ortho reward` finds, for each prompt, the noise whose image the rewards like best.

One prompt is worked on in this process, with pictures and curves. A file of prompts goes through the pool of `assign`: the
same slots, ledger, quarantine and resume. What it leaves are assignments whose target latents are those of the images that
were found, so `ortho train --noise base` distils them into the model.
"""

import json
import math
import sys
import time
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BeforeValidator, Field

from ortho_core.assignments import Assignments
from ortho_core.errors import RunFailed, UserError
from ortho_core.generators.base import latent_shape_of, model_fingerprint
from ortho_core.pairs import PairSet, Shard
from ortho_core.pairs.rows import PromptFields
from ortho_core.rewards import parse_rewards, reward_fingerprints
from ortho_core.settings import SearchConfig
from ortho_core.storage import Location, absolute
from rayjobs.assign import PoolSettings, labels, work_through, write_gaussianity
from rayjobs.ledger import Ledger, claim
from rayjobs.progress import say, summary_json
from rayjobs.reward_pictures import take_pictures
from rayjobs.reward_report import told_rewards, write_report
from rayjobs.reward_worker import RewardActor
from rayjobs.session import ray_session


class RewardJob(SearchConfig, PoolSettings):
    """Find the noise whose image scores highest, for one prompt or a file of them."""

    model: Path = Field(description="model folder (diffusers format)")
    reward: str = Field(
        description="clip, aesthetic, hybrid, pickscore, imagereward, hpsv2, or a sum: name:weight,name:weight"
    )
    out: Location = Field(description="folder (or, with --prompts, URL); the same command again resumes")
    prompt: str | None = Field(None, description="one prompt: worked on in this process, with pictures and curves")
    prompts: Location | None = Field(
        None, description="prompts: .txt (one a line), .jsonl, Parquet or a pair set; path or URL"
    )
    report_rewards: str | None = Field(
        None, description="rewards that are told of before and after and not optimised: name,name"
    )
    rewards_root: Path = Field(Path("models"), description="folder that the folders of the rewards' weights are in")
    reward_folders: Annotated[dict[str, Path] | None, BeforeValidator(labels)] = Field(
        None, description="folders of single rewards that are elsewhere: NAME=FOLDER,NAME=FOLDER"
    )
    prompt_field: str | None = Field(None, min_length=1, description="field that holds the prompt (none: prompt)")
    id_field: str | None = Field(None, min_length=1, description="field that holds a row's own unique id")
    retry_failures: bool = Field(False, description="besides what is not done yet, try the quarantined rows again")
    save_steps: bool = Field(False, description="with --prompt: a picture of every evaluation")
    patch_size: int = Field(8, ge=1, description="side p of the latent patches that one orthogonal matrix rotates")
    steps: int = Field(20, ge=1, description="evaluations (generator and rewards, forward + backward) per prompt")
    #: What is found for a prompt is what it is trained on.
    store_latents: ClassVar[bool] = True
    warm_start: ClassVar[None] = None
    candidate_forwards: ClassVar[int] = 0

    def folders(self) -> dict[str, Path]:
        """Where the rewards' weights are: each by its name, and by "" the root of those that are not named."""
        return {"": self.rewards_root, **(self.reward_folders or {})}


def check(job: RewardJob) -> dict[str, str]:
    """Fingerprints of the rewards' weights. Raises UserError for whatever can be found wrong before anything is loaded."""
    job.space(latent_shape_of(job.model))
    if (job.prompt is None) == (job.prompts is None):
        raise UserError("give --prompt TEXT or --prompts FILE, and not both")
    if job.prompt is not None and not job.prompt.strip():
        raise UserError("--prompt is blank")
    if job.prompt is not None and "://" in job.out:
        raise UserError(f"--out {job.out}: one prompt's pictures go to a local folder; --prompts may go to a URL")
    if job.save_steps and job.prompts is not None:
        raise UserError("--save-steps is of one --prompt; a file of prompts leaves no pictures")
    names = parse_rewards(job.reward)
    told = parse_rewards(job.report_rewards) if job.report_rewards else {}
    if both := sorted(set(names) & set(told)):
        raise UserError(f"--report-rewards: {', '.join(both)} is optimised, and told of in any case")
    return reward_fingerprints([*names, *told], job.folders())


def make_plan(job: RewardJob) -> tuple[dict[str, Any], PairSet, list[Shard]]:
    """What the run over a file of prompts will do. Raises UserError."""
    weights = check(job)
    assert job.prompts is not None
    rows = PairSet(job.prompts, PromptFields(prompt_field=job.prompt_field, id_field=job.id_field))
    rows_per_shard = job.rows_per_shard or rows.rows_per_shard()
    shards = rows.shards(rows_per_shard)
    decisive = {name: getattr(job, name) for name in (*SearchConfig.model_fields, "seed", "dtype", "store")}
    own = {"store_latents": True, "reward": parse_rewards(job.reward), "report_rewards": job.report_rewards}
    plan = {
        "pairs_fingerprint": rows.fingerprint(),
        "model_fingerprint": model_fingerprint(job.model),
        "reward_fingerprints": weights,
        "config": decisive | own,
        "warm_start": None,
        "rows": rows.rows(),
        "rows_per_shard": rows_per_shard,
        "shards": len(shards),
    }
    return Ledger.seal(plan), rows, shards


def plan(job: RewardJob) -> dict[str, Any]:
    """What a dry run prints."""
    if job.prompt is not None:
        return {"reward_fingerprints": check(job), "evaluations_at_most": job.steps, "out": job.out}
    from rayjobs.estimate import seconds_per_evaluation

    content, _, _ = make_plan(job)
    timing = seconds_per_evaluation(job, content["rows_per_shard"], RewardActor)
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
    check(job)
    if job.prompt is not None:
        from rayjobs.reward_one import run_one

        return run_one(job)
    here = {"rewards_root": job.rewards_root.absolute(), "model": job.model.absolute()}
    folders = {name: path.absolute() for name, path in (job.reward_folders or {}).items()} or None
    places = {"out": absolute(job.out), "prompts": absolute(str(job.prompts)), "reward_folders": folders}
    job = job.model_copy(update=here | places)
    sealed, rows, shards = make_plan(job)
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
            work_through(job, ledger, rows, tasks, done, quarantined, RewardActor, "reward")
        return conclude(job, ledger, sealed["rows"] - done, time.monotonic() - started)


def conclude(job: RewardJob, ledger: Ledger, rows_this_run: int, seconds: float) -> int:
    """Reconcile, say what was gained, take pictures, write report and summary. Returns the exit code."""
    counts = ledger.finish()
    rewards: dict[str, dict[str, Any]] = {}
    if counts["assigned"]:
        counts["gaussianity"] = write_gaussianity(ledger.folder, latent_shape_of(job.model))
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
        take_pictures(job)
        write_report(ledger.folder, json.loads(content))
    ledger.folder.replace("summary.json", content.encode())  # last: what has its summary has its report
    if not counts["assigned"]:
        raise RunFailed(f"none of the {counts['rows']} prompts could be used; see {job.out}/failures.jsonl")
    return 3 if counts["quarantined"] else 0


def gains(found: Assignments) -> dict[str, dict[str, Any]]:
    """Of each reward: its mean before and after, the mean gain, and the share of prompts for which it rose.

    One part is in memory at a time. The gain's interval is that of a mean over prompts, 1.96 standard errors to each side.
    """
    sums: dict[str, np.ndarray] = {}
    for before, after in told_rewards(found):
        for name, value in after.items():
            gain = value - before[name]
            sums[name] = sums.get(name, 0) + np.array([1.0, before[name], value, gain > 0, gain, gain**2])
    figures = {}
    for name, row in sums.items():
        count = int(row[0])
        first, last, improved, gain, square = (row[1:] / count).tolist()
        error = 1.96 * math.sqrt(max(0.0, square - gain**2) / max(1, count - 1))
        interval = {"value": gain, "low": gain - error, "high": gain + error, "count": count}
        figures[name] = {"before": first, "after": last, "improved": improved, "gain": interval}
    return figures


if __name__ == "__main__":
    from rayjobs.cli import main

    sys.exit(main(["reward", *sys.argv[1:]]))
