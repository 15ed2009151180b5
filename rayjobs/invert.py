"""`ortho invert`: the E-step for one image, with pictures and curves. Runs in this process, without a cluster."""

import shutil
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from ortho_core.device import pick_device
from ortho_core.errors import BadRow, RunFailed, UserError
from ortho_core.estep.config import AssignConfig
from ortho_core.estep.engine import assign_noise
from ortho_core.evaluation import to_bytes
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.marks import conduct, decides, resolved
from ortho_core.noise.gaussianity import write_diagnostics
from ortho_core.noise.seeded import noise_seed
from ortho_core.pairs.decoding import to_images
from ortho_core.pairs.images import decode_image
from ortho_core.pictures import labelled_rows, to_picture
from ortho_core.report.plots import plot_steps
from ortho_core.storage.folders import replace_folder
from ortho_core.storage.location import LocalPath
from rayjobs.verb.console import say, summary_json


class InvertJob(AssignConfig):
    """Find the noise that a model maps closest to one image."""

    prompt: str = decides(min_length=1, description="the image's prompt")
    target_image: LocalPath = resolved(description="the image")
    model: LocalPath = resolved(description="model folder (diffusers format)")
    out: LocalPath = conduct(description="folder for pictures, curves and the noise; replaced if it was made by invert")
    seed: int = decides(0, ge=0, description="decides the base noise")
    # Measuring the generator takes more evaluations than one image does.
    sensitivity_rank: int = decides(
        0, ge=0, description="lbfgs: noise directions of the first curvature model (0: none)"
    )
    device: str = conduct("auto", description="auto, cpu, cuda, cuda:1, ...")
    dtype: Literal["float32", "bfloat16", "float16"] = decides(
        "float32", description="precision of network and text encoders"
    )


def check(job: InvertJob) -> ModelFolder:
    """The job's model folder. Raises UserError for whatever can be found wrong before the model is loaded."""
    model = ModelFolder.open(job.model)
    job.space(model.latent_shape)
    if not job.prompt.strip():
        raise UserError("--prompt is blank")
    if not job.target_image.is_file():
        raise UserError(f"--target-image {job.target_image} does not exist")
    if job.out.exists() and any(job.out.iterdir()) and not (job.out / "meta.json").is_file():
        raise UserError(f"{job.out} is not empty and was not made by `ortho invert`; choose another folder")
    return model


def describe(job: InvertJob) -> dict[str, Any]:
    """What a dry run prints."""
    return {
        "evaluations": job.evaluations_at_most(1),
        "model_fingerprint": check(job).fingerprint,
        "out": str(job.out),
    }


def run(job: InvertJob) -> int:
    """Invert one image. Returns 0. Raises UserError or RunFailed."""
    model = check(job)
    fingerprint = model.fingerprint
    generator = load_generator(model, pick_device(job.device), job.dtype)
    try:
        pixels = decode_image(job.target_image.read_bytes(), generator.image_size, job.target_image.name)
    except BadRow as error:
        raise UserError(str(error)) from error
    images = to_images([pixels]).to(generator.device)
    seeds = [noise_seed(job.seed, job.target_image.stem)]
    with torch.no_grad():
        condition = generator.encode_prompts([job.prompt])
        targets = generator.encode_images(images)
    (found,) = assign_noise(generator, seeds, condition, targets, images, job)
    if found.failed:
        raise RunFailed(f"{job.target_image}: {found.failure}; try --dtype float32")
    base = generator.base_noise([found.seed])
    parameters = found.parameters[None].to(base.device)
    noise = job.space(generator.latent_shape).noise(base, parameters)
    with torch.no_grad():
        initial, final = (to_bytes(generator.decode(generator.denoise(n, condition))) for n in (base, noise))
    history = {name: values.tolist() for name, values in found.history.items()}

    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        pictures = {"target": to_bytes(images), "base noise": initial, "assigned noise": final}
        for name, picture in pictures.items():
            to_picture(picture[0]).save(folder / f"{name.replace(' ', '_')}.png")
        labelled_rows(pictures, max(1, 128 // generator.image_size[0])).save(folder / "comparison.png")
        plot_steps(history, folder / "loss_history.png")
        for when, which in (("init", base), ("final", noise)):
            write_diagnostics(which, job.patch_size, f"{when} noise", folder / f"orthogonal_gaussian_{when}")
        tensors = {"noise": noise, "base_noise": base, "target_latent": targets}
        if job.transform == "orthogonal":
            tensors["skew"] = parameters
        save_file(
            {k: v.float().cpu().contiguous() for k, v in tensors.items()}, folder / "best_input_noise.safetensors"
        )
        meta = {
            "prompt": job.prompt,
            "noise_seed": found.seed,
            "initial_loss": found.initial_loss,
            "loss": found.best("total"),
            "evaluations": found.evaluations,
            "candidate_forwards": found.candidate_forwards,
            "history": history,
            "model_fingerprint": fingerprint,
            "config": job.model_dump(mode="json"),
        }
        (folder / "meta.json").write_text(summary_json(meta))

    if job.out.is_dir() and not any(job.out.iterdir()):
        shutil.rmtree(job.out)
    replace_folder(job.out, write)
    say(
        f"loss {found.initial_loss:.4f} at the base noise, {found.best('total'):.4f} after {found.evaluations} "
        f"evaluations; pictures in {job.out}/comparison.png"
    )
    return 0


if __name__ == "__main__":
    from rayjobs.cli import main

    sys.exit(main(["invert", *sys.argv[1:]]))
