"""The models of an M-step, opened and checked against its options."""

from dataclasses import dataclass, replace

from ortho_core.errors import UserError
from ortho_core.generators.lora import lora_of
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.model_folder import CLASS_KIND, ModelFolder
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


def check_lora(job: TrainSettings, model: ModelFolder) -> None:
    """Raises UserError if the model takes no adapter, or its own is not of the shape that was asked for."""
    if job.lora_rank and model.kind == CLASS_KIND:
        raise UserError(
            f"--lora-rank: {model.path} is class-conditional, which has no adapters: train all weights (--lora-rank 0)"
        )
    there = lora_of(model)
    if there is None:
        return
    if not job.lora_rank:
        raise UserError(
            f"--model {model.path} is a LoRA adapter: go on with it (--lora-rank {there.rank}), or start from a model that "
            "was trained with --lora-merge"
        )
    asked = Lora(job.lora_rank, job.alpha, tuple(sorted(job.targets)))
    if asked != replace(there, targets=tuple(sorted(there.targets))):
        raise UserError(f"--model {model.path} has an adapter of {there}, which is not the {asked} that was asked for")
