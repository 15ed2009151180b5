"""The error of half precision: `python -m benchmarks.precision --out runs/precision.json`.

tiny-turbo compared with itself in float32, at plain noise and at the noise that 12 evaluations find, where gradients are small.
Compared are the latents, the E-step's gradient in the noise and the M-step's gradient in the weights (autocast, the loss of one
update without preserve rows). float16 runs with scaled gradients, as in Ortho, and without. An error is the norm of the
difference over the norm in float32.
"""

import argparse
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.problem import Problem
from benchmarks.results import write_results
from ortho_core.estep.config import AssignConfig
from ortho_core.estep.space import noise_space
from ortho_core.generators.diffusers_pipelines import DiffusersGenerator
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.losses import mean_square
from ortho_core.mstep.loss_scale import FIRST_SCALE

MODEL = "models/tiny-turbo"
HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def found_noise(problem: Problem) -> Tensor:
    """The noise that the search finds for each image."""
    config = AssignConfig(steps=12, patience=0, patch_size=problem.patch_size)
    found = problem.search(config)
    space = noise_space(config, problem.generator.latent_shape)
    return space.noise(problem.base, torch.stack([one.parameters for one in found]))


def bare_gradient(generator: DiffusersGenerator, problem: Problem, noise: Tensor) -> Tensor:
    """`denoise` in float16 without gradient scaling."""
    tensors = dict(generator.encode_prompts(problem.prompts).tensors)
    hidden = tensors.pop("encoder_hidden_states")
    x = noise.clone().requires_grad_(True)
    step = generator.step
    output = generator.trainable(
        (x * step.input_scale).to(hidden.dtype),
        torch.full((len(x),), step.timestep),
        encoder_hidden_states=hidden,
        added_cond_kwargs=tensors,
    ).sample
    latents = step.noise_weight * x + step.output_weight * output.float()
    (gradient,) = torch.autograd.grad(mean_square(latents, problem.targets).sum(), x)
    return gradient


def noise_side(generator: DiffusersGenerator, problem: Problem, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The latents, and the gradient in the noise."""
    x = noise.clone().requires_grad_(True)
    latents = generator.denoise(x, generator.encode_prompts(problem.prompts))
    (gradient,) = torch.autograd.grad(mean_square(latents, problem.targets).sum(), x)
    return latents.detach(), gradient


def weight_side(problem: Problem, noise: Tensor, half: torch.dtype | None, scale: float = 1.0) -> Tensor:
    """The gradient in the weights, as one vector."""
    generator = load_generator(ModelFolder.open(MODEL))
    generator.trainable.requires_grad_(True)
    with torch.autocast("cpu", half, enabled=half is not None):
        latents = generator.denoise(noise, problem.condition)
    (scale * mean_square(latents, problem.targets).mean()).backward()
    return nn.utils.parameters_to_vector(cast(Tensor, p.grad) for p in generator.trainable.parameters()) / scale


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def compare(problem: Problem, noise: Tensor) -> dict[str, dict[str, float]]:
    """Relative errors of each precision at a noise."""
    exact = cast(DiffusersGenerator, problem.generator)
    latents, gradient = noise_side(exact, problem, noise)
    weights = weight_side(problem, noise, None)
    table: dict[str, dict[str, float]] = {}
    for name, half in HALF.items():
        generator = cast(DiffusersGenerator, load_generator(ModelFolder.open(MODEL), dtype=name))
        found, by_noise = noise_side(generator, problem, noise)
        scale = FIRST_SCALE if half == torch.float16 else 1.0
        table[name] = {
            "latents": apart(found, latents),
            "gradient in the noise": apart(by_noise, gradient),
            "gradient in the weights": apart(weight_side(problem, noise, half, scale), weights),
        }
    table["float16, bare"] = {
        "latents": table["float16"]["latents"],
        "gradient in the noise": apart(bare_gradient(generator, problem, noise), gradient),
        "gradient in the weights": apart(weight_side(problem, noise, torch.float16), weights),
    }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    problem = Problem.of("tiny-turbo", Path("examples/digits/heldout.jsonl"), args.rows, 2, 0)
    results: dict[str, Any] = {}
    for where, noise in (("plain noise", problem.base), ("found noise", found_noise(problem))):
        results[where] = {"loss": float(problem.losses(noise).mean()), **compare(problem, noise)}
        print(f"at {where}, mean loss {results[where]['loss']:.4f}")
        for name, errors in results[where].items():
            if isinstance(errors, dict):
                print(f"  {name:14}" + ", ".join(f"{what} {100 * value:.3f} %" for what, value in errors.items()))
    write_results(results, args.out)


if __name__ == "__main__":
    main()
