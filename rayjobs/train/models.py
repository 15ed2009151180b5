"""The models of an M-step, opened and checked against its options."""

from dataclasses import dataclass, replace

from ortho_core.errors import UserError
from ortho_core.generators.kohya import KOHYA_WEIGHTS
from ortho_core.generators.lora import lora_of
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.model_folder import CLASS_KIND, ModelFolder
from ortho_core.generators.original_names import UNetNames
from ortho_core.generators.part_files import read_json
from rayjobs.train.config import TrainJob, TrainSettings
from rayjobs.verb.models import open_model


@dataclass(frozen=True)
class TrainModels:
    """The model folders of an M-step: the one it starts from, and the one that its preserve terms hold to."""

    model: ModelFolder
    held: ModelFolder

    @staticmethod
    def open(job: TrainJob) -> "TrainModels":
        """Raises UserError."""
        model = open_model(job.model)
        return TrainModels(model, model if job.preserve_model is None else open_model(job.preserve_model))


def check_single_file(job: TrainSettings, model: ModelFolder, group: str = "") -> None:
    """Raises UserError where what is saved is no whole model, or one that other programs do not load."""
    if job.single_file and job.lora_rank and not job.lora_merge:
        raise UserError(
            f"--{group}single-file is of whole models, and --{group}lora-rank saves adapters, with a file for other programs "
            f"anyhow ({KOHYA_WEIGHTS}): leave it out, or merge them (--{group}lora-merge)"
        )
    if job.single_file and model.kind == CLASS_KIND:
        raise UserError(f"--{group}single-file: {model.path} is class-conditional, which other programs do not load")
    if job.single_file:
        UNetNames(read_json((model.base.configs or model.base.path) / "unet" / "config.json"))


def check_lora(job: TrainSettings, model: ModelFolder, group: str = "") -> None:
    """Raises UserError if the model takes no adapter, or its own is not of the shape that was asked for."""
    if job.quantize != "none" and not job.lora_rank:
        raise UserError(
            f"--{group}quantize {job.quantize} packs weights that do not train: train an adapter on them (--{group}lora-rank 16)"
        )
    if job.quantize != "none" and job.parallel == "fsdp":
        raise UserError(
            f"--{group}parallel fsdp shards weights of one type, and not those of --{group}quantize {job.quantize}: take ddp"
        )
    if job.lora_rank and model.kind == CLASS_KIND:
        raise UserError(
            f"--{group}lora-rank: {model.path} is class-conditional, which has no adapters: "
            f"train all weights (--{group}lora-rank 0)"
        )
    there = lora_of(model)
    if there is None:
        return
    if not job.lora_rank:
        raise UserError(
            f"--model {model.path} is a LoRA adapter: go on with it (--{group}lora-rank {there.rank}), or start from a model "
            "that was trained with --lora-merge"
        )
    asked = Lora(job.lora_rank, job.alpha, tuple(sorted(job.targets)))
    if asked != replace(there, targets=tuple(sorted(there.targets))):
        raise UserError(f"--model {model.path} has an adapter of {there}, which is not the {asked} that was asked for")
