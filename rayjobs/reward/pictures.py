"""Pictures of a run over a file of prompts: the images of the first prompts, before and after, decoded by one worker.

The driver may have no GPU, or too little memory for the model. A worker like those of the search has room for it.
"""

import io
from typing import TYPE_CHECKING

import torch

from ortho_core.errors import UserError
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.pictures import save_png, to_bytes
from ortho_core.records.assignments import Assignments
from rayjobs.pool.derived import PICTURE_FOLDER
from rayjobs.verb.console import say
from rayjobs.verb.faults import explained

if TYPE_CHECKING:
    from rayjobs.reward.config import RewardJob

#: How many prompts have pictures: the first of the set.
PICTURED = 12
#: The files in the folder of pictures: contact sheets of one row.
BEFORE, AFTER = "before.png", "after.png"


def take_pictures(job: "RewardJob", model: ModelFolder) -> None:
    """Write `pictures/before.png` and `after.png` into the job's folder. If that fails, the report has no pictures."""
    import ray

    remote = ray.remote(num_cpus=job.cpus_per_worker, num_gpus=job.gpus() or None, label_selector=job.node_labels)(draw)
    try:
        job.fitting(1)  # a resumed run may be on another cluster than the search
        ray.get(remote.remote(job, model, job.worker_device()))
    except (UserError, ray.exceptions.RayError) as failure:
        say(f"reward: no pictures for the report: {explained(failure, job)}")


@torch.no_grad()
def draw(job: "RewardJob", model: ModelFolder, device: str) -> None:
    """On a worker: decode the images at the base noise, and the recorded latents of the images that were found."""
    torch.set_num_threads(max(1, int(job.cpus_per_worker)))
    found = Assignments(job.out)
    index = range(min(PICTURED, len(found)))
    generator = load_generator(model, device, job.dtype, quantize=job.quantize)
    shape = generator.latent_shape
    prompts = [row["prompt"] for row in found.rows(index, ["prompt"])]
    base = found.base_noise(index, shape).to(device)
    images: dict[str, list[torch.Tensor]] = {BEFORE: [], AFTER: []}
    for i, prompt in enumerate(prompts):  # one at a time, so that it needs less memory than the search
        before = generator.denoise(base[i : i + 1], generator.encode_prompts([prompt]))
        after = found.targets([i], shape).to(device, before.dtype)
        for name, latents in ((BEFORE, before), (AFTER, after)):
            images[name].append(to_bytes(generator.decode(latents)))
    store = found.folder.child(PICTURE_FOLDER)
    for name, each in images.items():
        sheet = io.BytesIO()
        save_png(torch.cat(each), sheet)
        store.replace(name, sheet.getvalue())
