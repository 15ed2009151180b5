"""`ortho generate`: make images with a model. Runs in this process, without a cluster."""

import io
import json
import posixpath
import shlex
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar, Literal

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ortho_core.at_once import AtOnce
from ortho_core.class_names import class_number
from ortho_core.device import pick_device
from ortho_core.errors import UserError
from ortho_core.evaluation.samples import sample
from ortho_core.generators.load import load_generator
from ortho_core.generators.loaded_files import planned_fingerprint
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.marks import decides, settings
from ortho_core.noise.seeded import noise_seed
from ortho_core.pairs.layouts.metadata import PAIRS
from ortho_core.pictures import contact_sheet, to_picture
from ortho_core.records.plan import Plan, Settings, fingerprint
from ortho_core.storage.store import Store
from rayjobs.generate.arrangements import ARRANGEMENTS, SINGLE, Arrangement, Asked
from rayjobs.generate.config import GenerateJob
from rayjobs.reports.words import counted
from rayjobs.verb.console import Progress, say
from rayjobs.verb.models import open_model
from rayjobs.verb.plan import claim

GRID = "grid.png"
#: The most images in the grid, and its columns.
IN_GRID, GRID_COLUMNS = 64, 8
#: Threads that encode the images of a batch. One image of 512 pixels takes 0.1 s, longer than a GPU takes to make it.
ENCODERS = 8


class GeneratePlan(Plan):
    """The plan of `ortho generate`."""

    verb: ClassVar[str] = "generate"

    kind: Literal["images"] = "images"
    model_fingerprint: str
    #: Of all rows of the file of prompts; None with --prompt, which is in `config`.
    prompts_fingerprint: str | None
    prompts: int
    images_per_prompt: int
    config: Settings

    @property
    def images(self) -> int:
        return self.prompts * self.images_per_prompt


@dataclass(frozen=True)
class Planned:
    """An image to be made: its file's name, its prompt, and the seed of its base noise."""

    file: str
    prompt: str
    seed: int

    def encoded(self, image: Tensor, model: str) -> bytes:
        """The file's content, from a uint8 image (3, Y, X). A PNG records how it was made. JPEG: Pillow's default quality."""
        buffer, picture = io.BytesIO(), to_picture(image)
        if self.file.endswith(".jpg"):
            picture.save(buffer, "JPEG")
        else:
            info = PngInfo()
            for name, value in (("prompt", self.prompt), ("noise_seed", str(self.seed)), ("model_fingerprint", model)):
                info.add_text(name, value)
            picture.save(buffer, "PNG", pnginfo=info)
        return buffer.getvalue()


def arrangement(job: GenerateJob) -> Arrangement:
    """How the images are named. Raises UserError for options that exclude each other."""
    if (job.prompt is None) == (job.prompts is None):
        raise UserError("give --prompt TEXT or --prompts FILE, and not both")
    if job.prompts is None:
        if job.images_per_prompt is not None or job.layout != "plain":
            raise UserError("--images-per-prompt and --layout need --prompts FILE; with --prompt use --count")
        return SINGLE
    if job.count is not None:
        raise UserError("--count needs --prompt; with --prompts use --images-per-prompt")
    chosen = ARRANGEMENTS[job.layout]
    if chosen.settled and job.images_per_prompt not in (None, chosen.images_per_prompt):
        raise UserError(f"--images-per-prompt {job.images_per_prompt}: {job.layout} accepts only one image per prompt")
    return chosen


def make_plan(job: GenerateJob, model: ModelFolder) -> tuple[GeneratePlan, list[Asked]]:
    """The plan, and the prompts. Raises UserError for every error that can be found before the model is loaded."""
    chosen = arrangement(job)
    asked = [Asked(job.prompt, "", {})] if job.prompt is not None else chosen.read(job.prompts) if job.prompts else []
    if model.class_config is not None:
        for each in asked:
            class_number(each.prompt, model.class_config.classes)
    plan = GeneratePlan(
        model_fingerprint=planned_fingerprint(model, job.dtype),
        prompts_fingerprint=fingerprint([[each.stem, each.row] for each in asked]) if job.prompts else None,
        prompts=len(asked),
        images_per_prompt=job.count or job.images_per_prompt or chosen.images_per_prompt,
        config=settings(job, decides),
    )
    return plan, asked


def planned_images(job: GenerateJob, plan: GeneratePlan, asked: Sequence[Asked]) -> list[Planned]:
    """Every image, in order. Its noise depends only on the seed, the prompt's number and the image's number."""
    suffix = arrangement(job).suffix
    images = []
    for number, each in enumerate(asked):
        names = ("generate",) if job.prompts is None else ("generate", number)
        for i in range(plan.images_per_prompt):
            images.append(Planned(each.stem + suffix.format(i=i), each.prompt, noise_seed(job.seed, *names, i)))
    return images


def describe(job: GenerateJob) -> dict[str, object]:
    """What a dry run prints."""
    plan, _ = make_plan(job, open_model(job.model, job.dtype, job.lora, job.quantize, job.size))
    return {**plan.as_json(), "images": plan.images, "out": str(job.out)}


def run(job: GenerateJob) -> int:
    """Make the images that do not exist yet. Returns 0. Raises UserError."""
    model = open_model(job.model, job.dtype, job.lora, job.quantize, job.size)
    plan, asked = make_plan(job, model)
    folder = claim(job.out, plan)
    images = planned_images(job, plan, asked)
    batches = list(unfinished(images, job.batch_size, folder))
    if batches:
        make(job, model, batches, len(images), folder)
    chosen = arrangement(job)
    if chosen.row_file:
        for each in asked:
            content = json.dumps(each.row).encode()
            folder.create(posixpath.join(each.stem.partition("/")[0], chosen.row_file), content)
    shown = write_grid(folder, images, plan)
    lines = [json.dumps({"prompt": p.prompt, "image": p.file, "noise_seed": p.seed}) + "\n" for p in images]
    folder.replace(PAIRS, "".join(lines).encode())  # written last: if it exists, the run is complete
    of = "" if job.prompts is None else f" of {counted(plan.prompts, 'prompt')}"
    which = "all of them" if shown == len(images) else f"the first {shown}"
    say(f"{counted(len(images), 'image')}{of} in {job.out}; {GRID} there shows {which}, {PAIRS} has prompts and seeds")
    if chosen.next_step:
        say(f"next: {chosen.next_step.format(out=shlex.quote(str(job.out)), path=job.out)}")
    return 0


def unfinished(images: Sequence[Planned], size: int, folder: Store) -> Iterator[list[Planned]]:
    """Batches with a missing image. Every run cuts the same batches, because an image's rounding depends on its batch."""
    for start in range(0, len(images), size):
        batch = list(images[start : start + size])
        if not all(folder.exists(image.file) for image in batch):
            yield batch


def make(job: GenerateJob, model: ModelFolder, batches: Sequence[Sequence[Planned]], total: int, folder: Store) -> None:
    """Make the images of these batches, with one batch in memory at a time."""
    progress = Progress("generate", total, "images", done=total - sum(map(len, batches)), starting="loading the model")
    generator = load_generator(model, pick_device(job.device), job.dtype, quantize=job.quantize)
    prompts, at_once = PromptCache(generator), AtOnce(job.batch_size, on_event=say)
    texts = list(dict.fromkeys(image.prompt for batch in batches for image in batch))
    if cut := generator.count_truncated(texts):
        say(f"{counted(cut, 'prompt is', 'prompts are')} longer than the text encoder's limit and lose the end")
    for place in {posixpath.dirname(image.file) for batch in batches for image in batch}:
        (folder.child(place) if place else folder).sweep()
    with ThreadPoolExecutor(ENCODERS) as encoders:
        for batch in batches:
            made = sample(generator, prompts, [p.prompt for p in batch], [p.seed for p in batch], at_once)
            for image, content in zip(
                batch, encoders.map(Planned.encoded, batch, made, [model.fingerprint] * len(batch)), strict=True
            ):
                folder.create(image.file, content)
            progress.advance(len(batch))
    progress.close()


def write_grid(folder: Store, images: Sequence[Planned], plan: GeneratePlan) -> int:
    """Write the first images as one picture, with prompts if there are several. Returns the number of images in it."""
    shown, each = images[:IN_GRID], plan.images_per_prompt
    columns = each if 1 < each <= GRID_COLUMNS else GRID_COLUMNS
    pictures = [Image.open(io.BytesIO(folder.read(image.file))) for image in shown]
    captions = [image.prompt for image in shown] if plan.prompts > 1 else []
    buffer = io.BytesIO()
    contact_sheet(pictures, columns, captions).save(buffer, "PNG")
    folder.replace(GRID, buffer.getvalue())
    return len(shown)
