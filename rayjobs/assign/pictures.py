"""Pictures of some rows of an E-step: the target, the image at the base noise, and the image at the matched noise.

The driver may have no GPU, or too little memory for the model. So the images are rendered where the workers run.
"""

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ortho_core.at_once import AtOnce
from ortho_core.errors import RunFailed, UserError
from ortho_core.framing.frame import Frame
from ortho_core.framing.framing import Framing
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.pairs.images import decode_framed
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pictures import to_bytes, to_picture
from ortho_core.records.sampled import NoiseOfRecord, SampledRecord
from ortho_core.report.page import Embedded
from rayjobs.assign.config import AssignJob, assigned_framing
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
    noise: Sequence[NoiseOfRecord],
) -> list[RowPictures]:
    """The pictures of some records, made where the pool's workers run. `noise` is the noise of each record.

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
    noise: Sequence[NoiseOfRecord],
    device: str,
    threads: int,
) -> list[RowPictures]:
    """Runs on a worker: fetches the targets, loads the model and renders."""
    torch.set_num_threads(threads)
    generator = load_generator(model, device, job.dtype, quantize=job.quantize)

    framing = assigned_framing(job, model)

    def target(record: SampledRecord) -> Embedded | str:
        return target_of(pairs, record, framing)

    with ThreadPoolExecutor(FETCHED_AT_ONCE) as pool:
        targets = list(pool.map(target, records))
    prompts = PromptCache(generator)
    images: dict[int, list[Embedded]] = {}
    # Rows of one size can be rendered together.
    by_shape = sorted(range(len(records)), key=lambda row: tuple(noise[row].base.shape))
    for _, group in itertools.groupby(by_shape, key=lambda row: noise[row].base.shape):
        rows = list(group)

        def made(part: slice, rows: list[int] = rows) -> list[Tensor]:
            frames = [framing.told(noise[row].frame or Frame.plain(framing.main)) for row in rows[part]]
            condition = prompts([records[row].prompt for row in rows[part]]).framed(frames)
            some = [noise[row] for row in rows[part]]
            maps = (torch.stack([one.base for one in some]), torch.stack([one.matched for one in some]))
            return [
                to_bytes(generator.decode(generator.denoise(each.to(generator.device), condition))) for each in maps
            ]

        rendered = AtOnce(RENDERED_TOGETHER)(len(rows), made)
        both = [torch.cat(parts) for parts in zip(*rendered, strict=True)]
        images |= {row: [Embedded.of(to_picture(each[k])) for each in both] for k, row in enumerate(rows)}
    return [RowPictures(target, *images[row]) for row, target in enumerate(targets)]


def target_of(pairs: PairSet, record: SampledRecord, framing: Framing) -> Embedded | str:
    """The image of a row as the search saw it, or why it cannot be read."""
    name = record.sample_id
    try:
        content = pairs.fetch_image(record.image, name)
        pixels, _ = decode_framed(content, framing, name, name, pairs.fields.max_image_pixels)
    except UserError as gone:
        return str(gone)
    return Embedded.of(Image.fromarray(pixels))
