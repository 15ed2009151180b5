"""`ortho reward --prompt`: one prompt, searched in this process, with pictures and curves."""

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ortho_core.generators.load import load_generator
from ortho_core.generators.loaded_files import planned_fingerprint
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.noise.seeded import noise_seed
from ortho_core.pictures import to_bytes
from rayjobs.reports import one_search
from rayjobs.reports.curves import reward_charts
from rayjobs.reward.config import RewardJob
from rayjobs.reward.report import write_report_of_one
from rayjobs.reward.worker import objective_of
from rayjobs.verb.console import say


def run_one(job: RewardJob, model: ModelFolder, fingerprints: Mapping[str, str]) -> int:
    """Search the noise of one prompt; `fingerprints` are of the rewards' weights. Returns 0. Raises UserError or RunFailed."""
    assert job.prompt is not None
    out = Path(job.out)
    one_search.check_folder(out, "reward --prompt")
    fingerprint, started = planned_fingerprint(model, job.dtype), time.monotonic()
    generator = load_generator(
        model,
        job.own_device(),
        job.dtype,
        gradient_checkpointing=job.gradient_checkpointing,
        quantize=job.quantize,
    )
    objective = objective_of(job, generator, fingerprints)
    steps: list[Tensor] = []
    objective.on_images = lambda images: steps.append(to_bytes(images[:1]))
    prompts = [job.prompt]
    with torch.no_grad():
        inputs = objective.inputs(generator.encode_prompts(prompts), objective.rewards.encode_prompts(prompts))
    # For one prompt, measuring the generator would take more evaluations than the search.
    config = job.model_copy(update={"sensitivity_rank": 0})
    search = one_search.search(generator, config, objective, noise_seed(job.seed, job.prompt), inputs)
    result = search.result
    before, after = steps[0], steps[result.best_step]
    # Scores are those of the saved uint8 pictures, since these are what a viewer sees.
    with torch.no_grad():
        encoded = objective.reported.encode_prompts(prompts)
        first, last = (
            objective.reported.scores(images.to(generator.device).float() / 255, encoded) for images in (before, after)
        )
    rewards = {name: {"before": float(first[name][0]), "after": float(last[name][0])} for name in first}
    meta = {
        "prompt": job.prompt,
        "best_evaluation": result.best_step + 1,
        "rewards": rewards,
        "optimised": objective.rewards.weights,
        "model_fingerprint": fingerprint,
        "seconds_this_run": round(time.monotonic() - started, 2),
        "config": job.model_dump(mode="json"),
    }
    pictures = {"best.png": after, "initial.png": before}
    if job.save_steps:
        pictures |= {f"steps/{k:03d}.png": images for k, images in enumerate(steps)}
    one_search.write_folder(
        out,
        search,
        meta,
        pictures=pictures,
        comparison={"base noise": before, "optimised noise": after},
        pixels=256,
        charts=("reward_history.png", reward_charts({name: result.history[name].tolist() for name in objective.parts})),
        finish=write_report_of_one,
    )
    for name, of in rewards.items():
        kind = "" if name in objective.parts else " (not optimised)"
        say(f"{name}{kind} {of['before']:.4f} → {of['after']:.4f}")
    say(f"{result.evaluations} evaluations; pictures and curves in {out}/report.html")
    return 0
