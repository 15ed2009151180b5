"""What the tests of the M-step job share: a small job, what its folder says of it, and assignments with a fault."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ortho_core.generators.diffusers_pipelines import DiffusersGenerator
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.mstep.data import MatchedData
from ortho_core.records.assignments import Assignments
from ortho_core.records.parts import encode_part, read_footer, read_part
from ortho_core.storage.open import open_store
from rayjobs.train.config import TrainJob
from rayjobs.train.job import make_plan
from rayjobs.train.models import TrainModels
from rayjobs.train.plan import TrainPlan

#: Six updates in two epochs over 24 rows, in the test's own process; the feed is a process of Ray's all the same.
SETTINGS = {
    "epochs": 2,
    "batch_size": 8,
    "lr": 1e-3,
    "preserve_latent_weight": 0.5,
    "preserve_prompts": "training",
    "preserve_batch_size": 8,
    "center_noise": False,
    "cpus_per_worker": 0.5,
    "log_every": 1,
    "tensorboard": False,
    "num_workers": 0,
}
PROMPTS = ["a green handwritten seven on a black background", "an orange handwritten two on a white background"]


def job(assigned: tuple[Path, Path], model: Path, out: Path, **options: Any) -> TrainJob:
    return TrainJob(**{**SETTINGS, "assignments": assigned[1], "model": model, "out": out, **options})


def planned(job: TrainJob) -> tuple[TrainPlan, MatchedData]:
    return make_plan(job, TrainModels.open(job))


def summary(out: Path) -> dict[str, Any]:
    return json.loads((out / "train_summary.json").read_text())


def losses(out: Path) -> list[float]:
    return [epoch["loss"] for epoch in summary(out)["epochs"]]


def history(out: Path, group: str = "train") -> list[dict[str, Any]]:
    lines = map(json.loads, (out / "train_history.jsonl").read_text().splitlines())
    return [line for line in lines if line["group"] == group]


def assert_same_lines(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], tolerance: float) -> None:
    """Of a log, as far as both go."""
    for line, other in zip(ours, theirs, strict=False):
        assert (line["update"], line["group"]) == (other["update"], other["group"])
        for name, value in other.items():
            if name != "group":
                assert line[name] == pytest.approx(value, rel=tolerance, abs=tolerance), (line["update"], name)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_generator(ModelFolder.open(folder)).trainable.state_dict()


def assert_same_weights(folder: Path, other: Path, tolerance: float) -> None:
    ours = weights(folder)
    for name, value in weights(other).items():
        torch.testing.assert_close(ours[name], value, rtol=tolerance, atol=tolerance)


def images(generator: Any) -> torch.Tensor:
    """Of two prompts at two fixed noises."""
    with torch.no_grad():
        latents = generator.denoise(generator.base_noise([1, 2]), generator.encode_prompts(PROMPTS))
        return generator.decode(latents).clamp(0, 1)


def diffusers_images(pipeline: Any) -> torch.Tensor:
    """The same, by the pipeline's own call."""
    pipeline.set_progress_bar_config(disable=True)
    noise = DiffusersGenerator(pipeline).base_noise([1, 2])
    return pipeline(PROMPTS, latents=noise, num_inference_steps=1, guidance_scale=0.0, output_type="pt").images


def altered(assigned: tuple[Path, Path], folder: Path, row: int, **values: Any) -> tuple[tuple[Path, Path], str]:
    """A copy of the assignments in which one row has other values, and that row's name."""
    shutil.copytree(assigned[1], folder)
    assignments = Assignments(folder)
    part = int(np.searchsorted(assignments.starts, row, side="right")) - 1
    name = assignments.parts[part]
    table = read_part(open_store(folder), name)
    rows, about = table.to_pylist(), read_footer(open_store(folder), name).about
    mine = rows[row - assignments.starts[part]]
    mine |= {k: v(mine[k]) for k, v in values.items()}
    (folder / name).write_bytes(encode_part(rows, about, assignments.plan.part_schema))
    return (assigned[0], folder), mine["sample_id"]


def other_model(model: Path, folder: Path) -> Path:
    """A copy of a model folder with one weight changed."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_out.bias"][0] += 0.25
    save_file(tensors, file)
    return folder
