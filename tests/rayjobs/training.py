"""What the tests of the M-step job share: a small job, and what its folder says of it."""

import json
from pathlib import Path
from typing import Any

import torch

from ortho_core.generators import load_generator
from rayjobs.train import TrainJob

#: Six updates in two epochs over 24 rows, in the test's own process; the feed is a process of Ray's all the same.
SETTINGS = {
    "epochs": 2,
    "batch_size": 8,
    "lr": 1e-3,
    "preserve_latent_weight": 0.5,
    "cpus_per_worker": 0.5,
    "log_every": 1,
    "tensorboard": False,
    "num_workers": 0,
}


def job(assigned: tuple[Path, Path], model: Path, out: Path, **options: Any) -> TrainJob:
    return TrainJob(**{**SETTINGS, "assignments": assigned[1], "model": model, "out": out, **options})


def summary(out: Path) -> dict[str, Any]:
    return json.loads((out / "train_summary.json").read_text())


def losses(out: Path) -> list[float]:
    return [epoch["loss"] for epoch in summary(out)["epochs"]]


def history(out: Path, group: str = "train") -> list[dict[str, Any]]:
    lines = map(json.loads, (out / "train_history.jsonl").read_text().splitlines())
    return [line for line in lines if line["group"] == group]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_generator(folder).trainable.state_dict()


def images(generator: Any) -> torch.Tensor:
    """Of two prompts at two fixed noises."""
    prompts = ["a green handwritten seven on a black background", "an orange handwritten two on a white background"]
    with torch.no_grad():
        return generator.decode(
            generator.denoise(generator.base_noise([1, 2]), generator.encode_prompts(prompts))
        ).clamp(0, 1)


def diffusers_images(pipeline: Any) -> torch.Tensor:
    """The same, by the pipeline itself."""
    from ortho_core.generators.diffusers_pipelines import DiffusersGenerator

    prompts = ["a green handwritten seven on a black background", "an orange handwritten two on a white background"]
    pipeline.set_progress_bar_config(disable=True)
    noise = DiffusersGenerator(pipeline).base_noise([1, 2])
    return pipeline(prompts, latents=noise, num_inference_steps=1, guidance_scale=0.0, output_type="pt").images
