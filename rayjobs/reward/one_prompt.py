"""`ortho reward --prompt`: one prompt in this process, with pictures and curves."""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from ortho_core.device import pick_device
from ortho_core.errors import RunFailed, UserError
from ortho_core.estep.engine import Engine
from ortho_core.estep.queue import requests_of
from ortho_core.evaluation import to_bytes
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.noise.gaussianity import verdict, write_diagnostics
from ortho_core.noise.seeded import noise_seed
from ortho_core.pictures import labelled_rows, to_picture
from ortho_core.report.plots import plot_rewards
from ortho_core.storage.folders import replace_folder
from rayjobs.reward.report import write_report_of_one
from rayjobs.reward.worker import objective_of
from rayjobs.verb.console import say, summary_json

if TYPE_CHECKING:
    from rayjobs.reward.config import RewardJob


def run_one(job: "RewardJob", model: ModelFolder) -> int:
    """Raise the rewards of one prompt. Returns 0. Raises UserError or RunFailed."""
    assert job.prompt is not None
    out = Path(job.out)
    if out.exists() and any(out.iterdir()) and not (out / "meta.json").is_file():
        raise UserError(f"{out} is not empty and was not made by `ortho reward --prompt`; choose another folder")
    fingerprint, started = model.fingerprint, time.monotonic()
    generator = load_generator(model, pick_device("auto"), job.dtype)
    objective = objective_of(job, generator)
    seen: list[Tensor] = []
    objective.on_images = lambda images: seen.append(to_bytes(images[:1]))
    prompts, seeds = [job.prompt], [noise_seed(job.seed, job.prompt)]
    with torch.no_grad():
        condition = generator.encode_prompts(prompts)
        inputs = objective.inputs(condition, objective.rewards.encode_prompts(prompts))
    # Measuring the generator takes more evaluations than one prompt does.
    config = job.model_copy(update={"sensitivity_rank": 0})
    (found,) = Engine(generator, config, 1, objective).run(requests_of([0], seeds, inputs))
    if found.failed:
        raise RunFailed(f"{found.failure}; try --dtype float32")
    base = generator.base_noise(seeds)
    parameters = found.parameters[None].to(base.device)
    noise = job.space(generator.latent_shape).noise(base, parameters)
    before, after = seen[0], seen[found.best_step]
    scores = {name: found.history[name].tolist() for name in objective.parts}
    # Of the pictures as they are saved, which is what a viewer judges.
    with torch.no_grad():
        encoded = objective.told.encode_prompts(prompts)
        first, last = (
            objective.told.scores(images.to(generator.device).float() / 255, encoded) for images in (before, after)
        )
    told = {name: (float(first[name][0]), float(last[name][0])) for name in first}

    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        pictures = {"base noise": before, "optimised noise": after}
        scale = max(1, 256 // generator.image_size[0])
        to_picture(after[0]).save(folder / "best.png")
        to_picture(before[0]).save(folder / "initial.png")
        labelled_rows(pictures, scale).save(folder / "comparison.png")
        if job.save_steps:
            (folder / "steps").mkdir()
            for k, image in enumerate(seen):
                to_picture(image[0]).save(folder / "steps" / f"{k:03d}.png")
        plot_rewards(scores, folder / "reward_history.png")
        for when, which in (("init", base), ("final", noise)):
            statistics = write_diagnostics(
                which, job.patch_size, f"{when} noise", folder / f"orthogonal_gaussian_{when}"
            )
        tensors = {"noise": noise, "base_noise": base}
        if job.transform == "orthogonal":
            tensors["skew"] = parameters
        host = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(host, folder / "best_input_noise.safetensors")
        meta = {
            "prompt": job.prompt,
            "noise_seed": seeds[0],
            "evaluations": found.evaluations,
            "best_evaluation": found.best_step + 1,
            "rewards": {name: {"before": a, "after": b} for name, (a, b) in told.items()},
            "optimised": objective.rewards.weights,
            "gaussianity": verdict(statistics),
            "history": {name: values.tolist() for name, values in found.history.items()},
            "model_fingerprint": fingerprint,
            "seconds_this_run": round(time.monotonic() - started, 2),
            "config": job.model_dump(mode="json"),
        }
        (folder / "meta.json").write_text(summary_json(meta))
        write_report_of_one(folder)

    if out.is_dir() and not any(out.iterdir()):
        shutil.rmtree(out)
    replace_folder(out, write)
    for name, (a, b) in told.items():
        say(f"{name}{'' if name in objective.parts else ' (not optimised)'} {a:.4f} → {b:.4f}")
    say(f"{found.evaluations} evaluations; pictures and curves in {out}/report.html")
    return 0
