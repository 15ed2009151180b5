"""`ortho invert`: the E-step for one image, with pictures and curves. Runs in this process, without a cluster."""

import errno

import torch

from ortho_core.device import pick_device
from ortho_core.errors import BadRow, UserError
from ortho_core.estep.objective import Reconstruction
from ortho_core.estep.space import noise_space
from ortho_core.framing.framing import Framing
from ortho_core.generators.load import load_generator
from ortho_core.generators.loaded_files import planned_fingerprint
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.noise.seeded import noise_seed
from ortho_core.pairs.decoding import to_images
from ortho_core.pairs.images import decode_framed
from ortho_core.pictures import to_bytes
from ortho_core.text.parsing import regular_bytes
from rayjobs.invert.config import InvertJob
from rayjobs.reports import one_search
from rayjobs.reports.curves import loss_chart
from rayjobs.reports.framed import line_of_one
from rayjobs.verb.console import say
from rayjobs.verb.models import open_model


def check(job: InvertJob) -> ModelFolder:
    """The job's model folder. Raises UserError for every error that can be found before the model is loaded."""
    model = open_model(job.model, job.dtype, job.lora, job.quantize, job.size)
    noise_space(job, model.latent_shape)
    if not job.prompt.strip():
        raise UserError("--prompt is blank")
    if not job.target_image.is_file():
        raise UserError(f"--target-image {job.target_image} does not exist")
    one_search.check_folder(job.out, "invert")
    return model


def describe(job: InvertJob) -> dict[str, object]:
    """What a dry run prints."""
    return {
        "evaluations": job.evaluations_at_most(1),
        "model_fingerprint": check(job).fingerprint,
        "out": str(job.out),
    }


def run(job: InvertJob) -> int:
    """Invert one image. Returns 0. Raises UserError or RunFailed."""
    model = check(job)
    fingerprint = planned_fingerprint(model, job.dtype)
    generator = load_generator(model, pick_device(job.device), job.dtype, quantize=job.quantize)
    try:
        content = regular_bytes(job.target_image, job.max_image_bytes)
        framing, name = Framing.at(generator.image_size), job.target_image.name
        pixels, frame = decode_framed(content, framing, "", name, job.max_image_pixels)
    except BadRow as error:
        raise UserError(str(error)) from error
    except OSError as error:
        more = " (--max-image-bytes raises the limit)" if error.errno == errno.EFBIG else ""
        raise UserError(f"--target-image {job.target_image}: {error.strerror or error}{more}") from error
    if line := line_of_one(frame):
        say(f"{name} {line}")
    images = to_images([pixels]).to(generator.device)
    with torch.no_grad():
        condition = generator.encode_prompts([job.prompt])
        targets = generator.encode_images(images)
    objective = Reconstruction(generator, job)
    inputs = objective.inputs(condition, targets, images)
    search = one_search.search(generator, job, objective, noise_seed(job.seed, job.target_image.stem), inputs)
    result = search.result
    with torch.no_grad():
        before, after = (
            to_bytes(generator.decode(generator.denoise(n, condition))) for n in (search.base, search.noise)
        )
    comparison = {"target": to_bytes(images), "base noise": before, "assigned noise": after}
    meta = {
        "prompt": job.prompt,
        "initial_loss": result.initial_loss,
        "loss": result.best("total"),
        "candidate_forwards": result.candidate_forwards,
        "model_fingerprint": fingerprint,
        "config": job.model_dump(mode="json"),
    }
    one_search.write_folder(
        job.out,
        search,
        meta,
        pictures={f"{name.replace(' ', '_')}.png": image for name, image in comparison.items()},
        comparison=comparison,
        pixels=128,
        charts=("loss_history.png", [loss_chart({name: v.tolist() for name, v in result.history.items()})]),
        tensors={"target_latent": targets},
    )
    say(
        f"loss {result.initial_loss:.4f} at the base noise, {result.best('total'):.4f} after {result.evaluations} "
        f"evaluations; pictures in {job.out}/comparison.png"
    )
    return 0
