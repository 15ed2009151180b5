"""`ortho generate`: images from a model folder. Runs in this process, without a cluster."""

import sys
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ortho_core.device import pick_device
from ortho_core.errors import UserError
from ortho_core.evaluation import sample
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.marks import conduct, decides, resolved
from ortho_core.noise.seeded import noise_seed
from ortho_core.pictures import grid, to_picture
from ortho_core.storage.location import ModelPath, OutputPath
from rayjobs.verb.console import say


class GenerateJob(BaseModel):
    """Make images of one prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelPath = resolved(description="model folder (diffusers format)")
    prompt: str = decides(min_length=1, description="what to make")
    out: OutputPath = conduct(description="folder for the images, 0000.png and so on, and grid.png")
    count: int = decides(16, ge=1, description="how many images")
    seed: int = decides(0, ge=0, description="decides the noises; the first images of a larger count are the same")
    batch_size: int = conduct(16, ge=1, description="images made at once")
    device: str = conduct("auto", description="auto, cpu, cuda, cuda:1, ...")
    dtype: Literal["float32", "bfloat16", "float16"] = decides(
        "float32", description="precision of network and text encoders"
    )


def describe(job: GenerateJob) -> dict[str, object]:
    """What a dry run prints."""
    ModelFolder.open(job.model)
    return {"images": job.count, "out": str(job.out)}


def run(job: GenerateJob) -> int:
    """Generate. Returns 0. Raises UserError."""
    model = ModelFolder.open(job.model)
    try:
        job.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {job.out}: {error.strerror}") from error
    generator = load_generator(model, pick_device(job.device), job.dtype)
    seeds = [noise_seed(job.seed, "generate", i) for i in range(job.count)]
    images = sample(generator, PromptCache(generator), [job.prompt] * job.count, seeds, job.batch_size)
    for i, image in enumerate(images):
        to_picture(image).save(job.out / f"{i:04d}.png")
    to_picture(grid(images, min(8, job.count))).save(job.out / "grid.png")
    say(f"{job.count} images in {job.out}, all of them in {job.out / 'grid.png'}")
    return 0


if __name__ == "__main__":
    from rayjobs.cli import main

    sys.exit(main(["generate", *sys.argv[1:]]))
