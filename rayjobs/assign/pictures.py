"""Pictures of some rows of an E-step: the target, the image at the base noise, and the image at the matched noise.

The driver may have no GPU, or too little memory for the model. So the images are rendered where the workers run.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ortho_core.at_once import AtOnce
from ortho_core.errors import RunFailed, UserError
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.pairs.images import decode_image
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pictures import to_bytes, to_picture
from ortho_core.records.sampled import SampledRecord
from ortho_core.report.page import Embedded
from rayjobs.assign.config import AssignJob
from rayjobs.verb.faults import explained

#: Rows that are rendered in one batch. The search's batch was larger and kept gradients, so this one fits.
RENDERED_TOGETHER = 4
#: Threads that fetch targets.
FETCHED_AT_ONCE = 8
#: Seconds to wait for the pictures: the cluster may have no room, or a node may be lost.
PICTURES_PATIENCE_S = 1800


@dataclass(frozen=True)
class RowPictures:
    """The three pictures of one row. `target` is the reason, as text, if it cannot be read any more."""

    target: Embedded | str
    base: Embedded
    matched: Embedded


def take_pictures(
    job: AssignJob,
    model: ModelFolder,
    pairs: PairSet,
    records: Sequence[SampledRecord],
    noise: tuple[Tensor, Tensor],
) -> list[RowPictures]:
    """The pictures of some records, made where the pool's workers run. `noise` is the records' ε and Qε.

    Raises UserError or RunFailed.
    """
    threads = max(1, int(job.cpus_per_worker))
    if not job.pool_size[1]:
        return draw(job, model, pairs, records, noise, job.own_device(), threads)
    import ray

    job.fitting(1)  # the search may have run on another cluster
    gpus = job.gpus()
    task = ray.remote(
        num_cpus=job.cpus_per_worker, num_gpus=gpus or None, label_selector=job.node_labels, max_retries=1
    )(draw)
    pending = task.remote(job, model, pairs, records, noise, job.worker_device(), threads)
    try:
        return list(ray.get(pending, timeout=PICTURES_PATIENCE_S))
    except ray.exceptions.RayError as failure:
        ray.cancel(pending, force=True)
        raise RunFailed(explained(failure, job)) from failure


@torch.no_grad()
def draw(
    job: AssignJob,
    model: ModelFolder,
    pairs: PairSet,
    records: Sequence[SampledRecord],
    noise: tuple[Tensor, Tensor],
    device: str,
    threads: int,
) -> list[RowPictures]:
    """Runs on a worker: fetches the targets, loads the model and renders."""
    torch.set_num_threads(threads)
    generator = load_generator(model, device, job.dtype, quantize=job.quantize)

    def target(record: SampledRecord) -> Embedded | str:
        return target_of(pairs, record, generator.image_size)

    with ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:
        targets = list(pool.map(target, records))
    prompts = PromptCache(generator)
    images: list[list[Embedded]] = [[], []]

    def made(part: slice) -> list[Tensor]:
        condition = prompts([record.prompt for record in records[part]])
        rows = (generator.denoise(maps[part].to(generator.device), condition) for maps in noise)
        return [to_bytes(generator.decode(latents)) for latents in rows]

    for part in AtOnce(RENDERED_TOGETHER)(len(records), made):
        for rendered, pictures in zip(images, part, strict=True):
            rendered += [Embedded.of(to_picture(picture)) for picture in pictures]
    return [RowPictures(*row) for row in zip(targets, *images, strict=True)]


def target_of(pairs: PairSet, record: SampledRecord, size: tuple[int, int]) -> Embedded | str:
    """The image of a row as the search saw it, or why it cannot be read."""
    try:
        pixels = decode_image(
            pairs.fetch_image(record.image, record.sample_id), size, record.sample_id, pairs.fields.max_image_pixels
        )
    except UserError as gone:
        return str(gone)
    return Embedded.of(Image.fromarray(pixels))
