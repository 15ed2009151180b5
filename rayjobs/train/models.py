"""The models of an M-step, opened and checked against its options."""

from dataclasses import dataclass, replace

from ortho_core.errors import UserError
from ortho_core.estep.config import AssignConfig
from ortho_core.framing.framing import Framing
from ortho_core.framing.image_size import size_of, text_of
from ortho_core.generators.bucket_sizes import own_size
from ortho_core.generators.lora import lora_of
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.model_folder import CLASS_KIND, ModelFolder
from ortho_core.generators.original_names import UNetNames
from ortho_core.records.assignments import Assignments
from rayjobs.train.config import TrainJob, TrainSettings
from rayjobs.verb.image_size import BucketSettings, framing_of
from rayjobs.verb.models import open_model


@dataclass(frozen=True)
class TrainModels:
    """The model folders of an M-step: the model to start from, and the one that the preserve terms stay close to."""

    model: ModelFolder
    held: ModelFolder

    @staticmethod
    def open(job: TrainJob) -> "TrainModels":
        """Open both, at the main size of the training images. Raises UserError."""
        model = open_model(job.model)
        size = trained_framing(job, model).main
        held = model if job.preserve_model is None else open_model(job.preserve_model)
        return TrainModels(model.at(size), held.at(size))


def trained_framing(job: TrainJob, model: ModelFolder) -> Framing:
    """The sizes of the training images: those of the assignments, or else those of the options. Raises UserError."""
    if job.assignments is None:
        patches = (job.match_patch_size or AssignConfig().patch_size) if job.noise == "online" else 1
        return framing_of(job, model, patches, job.seed)
    assigned = Assignments(job.assignments).plan.framing(own_size(model))
    fields = BucketSettings.model_fields
    given = next((name for name, field in fields.items() if getattr(job, name) != field.default), None)
    if given is not None and not (given == "size" and (size_of(job.size),) == assigned.sizes):
        option = f"--{given.replace('_', '-')}"
        raise UserError(
            f"{option} {getattr(job, given)}: {job.assignments} was made for {shown_sizes(assigned, model)}; leave {option} out"
        )
    return assigned


def shown_sizes(framing: Framing, model: ModelFolder) -> str:
    """The sizes of images, for messages."""
    if framing.sizes == (own_size(model),):
        return "the model's own size"
    return f"{'--size' if framing.is_one_size else '--buckets'} {','.join(map(text_of, framing.sizes))}"


def check_single_file(job: TrainSettings, model: ModelFolder, group: str = "") -> None:
    """Raises UserError if the run saves no full models, or models that other programs cannot load."""
    if job.single_file and model.kind == CLASS_KIND:
        raise UserError(f"--{group}single-file: {model.path} is class-conditional, which other programs do not load")
    if job.single_file and not model.adapter.has_single_file:
        raise UserError(
            f"--{group}single-file: {model.path} is a {model.kind}, which has no single-file format here; leave it out"
        )
    if job.single_file and job.lora_rank and not job.lora_merge:
        raise UserError(
            f"--{group}single-file needs full models, and --{group}lora-rank saves adapters, which have a file for other "
            f"programs already ({model.adapter.lora_elsewhere}): leave it out, or merge the adapters (--{group}lora-merge)"
        )
    if job.single_file:
        UNetNames(model.network_config)


def check_lora(job: TrainSettings, model: ModelFolder, group: str = "") -> None:
    """Raises UserError if the model accepts no adapter, or has one that differs from the options."""
    if job.quantize != "none" and not job.lora_rank:
        raise UserError(
            f"--{group}quantize {job.quantize} is for frozen weights: train an adapter on them (--{group}lora-rank 16)"
        )
    if job.quantize != "none" and job.parallel == "fsdp":
        raise UserError(
            f"--{group}parallel fsdp cannot shard the weights of --{group}quantize {job.quantize}; accepted: ddp"
        )
    if job.lora_rank and model.kind == CLASS_KIND:
        raise UserError(
            f"--{group}lora-rank: {model.path} is class-conditional, which has no adapters: "
            f"train all weights (--{group}lora-rank 0)"
        )
    adapter = lora_of(model)
    if adapter is None:
        return
    if not job.lora_rank:
        raise UserError(
            f"--model {model.path} is a LoRA adapter: continue with it (--{group}lora-rank {adapter.rank}), or start from a "
            "model that was trained with --lora-merge"
        )
    requested = job.adapter(model)
    assert requested is not None
    if job.lora_targets is None:  # then those that the adapter has
        requested = replace(requested, targets=adapter.targets)
    if _sorted(requested) != _sorted(adapter):
        raise UserError(f"--model {model.path} has the adapter {adapter}, and the options request {requested}")


def _sorted(lora: Lora) -> Lora:
    return replace(lora, targets=tuple(sorted(lora.targets)))
