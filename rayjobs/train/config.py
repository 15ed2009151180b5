"""The options of `ortho train`."""

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator

from ortho_core.errors import UserError
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.marks import conduct, decides, resolved
from ortho_core.mstep.config import PRESERVE_SHARE, MatchingConfig, MStepConfig, NoiseKind
from ortho_core.pairs.rows import PairFields
from ortho_core.storage.location import Location, ModelPath, OutputPath, PairsLocation, Place
from rayjobs.training.config import TrainingSettings
from rayjobs.verb.image_size import BucketSettings
from rayjobs.verb.precision import Quantize
from rayjobs.verb.prompt_embeddings import PromptEmbeddings

#: Values of `--preserve-prompts` that are not files.
ELSEWHERE, TRAINING = "elsewhere", "training"

PreservePrompts = Annotated[str, Place(names=f"{ELSEWHERE}|{TRAINING}", existing_first=True)]


def _names(value: object) -> object:
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


class TrainSettings(MStepConfig, MatchingConfig, TrainingSettings):
    """How the M-step runs; `em` has these options under `train.`."""

    noise: NoiseKind = decides(
        "matched",
        description="matched: the assigned noise; online: matched again before each update (--match-steps); random: direct SFT; "
        "base: the noise that the search started from, to distil the images that `ortho reward` found",
    )
    center_noise: bool | None = decides(
        None,
        description="subtract the mean of all assigned noises from each, so that their mean is 0 as for N(0, I) (none: yes, if "
        "assigned noise is trained on)",
    )
    epochs: int = decides(5, ge=1, description="passes over the assignments")
    batch_size: int = decides(16, ge=1, description="rows of one update, over all workers and micro-batches")
    preserve_batch_size: int | None = decides(
        None,
        ge=1,
        description="rows of the preserve terms in one update, over all workers (none: a quarter of batch_size)",
    )
    preserve_prompts: PreservePrompts = resolved(
        ELSEWHERE,
        description="prompts of the preserve terms: elsewhere (Ortho's list of prompts of all kinds; for a class-conditional "
        "model the classes that no row has), training (the training prompts), or a file: one per line, or .jsonl with `prompt`",
    )
    lora_rank: int = decides(
        0, ge=0, description="train an adapter of this rank instead of all weights (0: all weights)"
    )
    lora_alpha: float | None = decides(
        None, gt=0, description="scale of the adapter, alpha / rank (none: alpha = rank)"
    )
    lora_targets: Annotated[tuple[str, ...] | None, BeforeValidator(_names)] = decides(
        None,
        description="name endings of the layers that get an adapter (none: those usual for the kind of model: the projections "
        "of attention; for FLUX also those of the text's tokens and the feed-forward layers)",
    )
    quantize: Quantize = decides(
        "none",
        description="with --lora-rank: store the frozen base weights in 8 or 4 bits, for small GPUs (docs/guides/devices.md)",
    )
    lora_merge: bool = decides(False, description="save full models with the adapter merged in, not adapters")
    single_file: bool = conduct(
        False,
        description="add single_file.safetensors to each checkpoint: the model in float16, for ComfyUI and A1111",
    )
    gradient_checkpointing: bool = conduct(
        False,
        description="compute activations twice to save memory (false: only if an update does not fit otherwise)",
    )
    compile: bool = conduct(False, description="torch.compile the network")
    parallel: Literal["ddp", "fsdp"] = conduct(
        "ddp",
        description="fsdp: shard weights, gradients and optimiser over the workers, for models that do not fit one GPU",
    )
    readers_per_worker: int = conduct(1, ge=1, description="processes that read and decode ahead of each worker")
    shuffle_window: int = decides(
        65_536, ge=1, description="rows that are shuffled together (fewer if they do not fit the memory)"
    )
    validation: Location | None = resolved(
        None, description="assignments of held-out pairs, made by `ortho assign` with the starting model"
    )
    validation_rows: int = decides(
        64,
        ge=1,
        description="how many held-out rows to validate on: the first; of images of several sizes, rows spread over the set",
    )
    validate_every: int = decides(0, ge=0, description="updates between validations (0: at the end of each epoch)")
    save_every: int = decides(1, ge=0, description="epochs between saved checkpoint-epoch-NNN (0: only best and final)")
    max_skipped_updates: int = conduct(
        10,
        ge=0,
        description="most updates that may be skipped because the gradient is not finite; the run ends after more",
    )
    allow_stale: bool = conduct(False, description="allow noise that was matched to another model than --model")
    gpu_memory: float | None = conduct(
        None,
        gt=0,
        description="with --dry-run: report whether an update fits a GPU of this many GiB; the machine needs no such GPU",
    )
    seed: int = decides(0, ge=0, description="decides the order of rows and every random noise")

    def adapter(self, model: ModelFolder) -> Lora | None:
        """The adapter of a pipeline's network that is trained; None: all weights are."""
        if not self.lora_rank:
            return None
        targets = self.lora_targets or model.adapter.lora_targets
        return Lora(self.lora_rank, self.lora_alpha or float(self.lora_rank), tuple(targets))

    @property
    def loaded_in(self) -> tuple[str, ...]:
        """The precisions that models may be loaded in, as for `--dtype`: float32, and the half precision of frozen weights."""
        halved = self.lora_rank and self.parallel == "ddp" and self.mixed_precision != "no"
        half = {"auto": "auto", "fp16": "float16", "bf16": "bfloat16"}
        return ("float32", half[self.mixed_precision]) if halved else ("float32",)

    @property
    def keeps_noise(self) -> bool:
        """Whether a row's noise starts from kept noise, and is only partly refreshed."""
        return self.noise == "online" and self.match_refresh < 1

    @property
    def preserve_rows(self) -> int:
        """Rows of the preserve terms in one update, over all workers."""
        if not self.preserves:
            return 0
        size = 2 if self.preserve_differences else 1  # a difference needs two rows
        return self.preserve_batch_size or size * math.ceil(self.batch_size / PRESERVE_SHARE / size)

    @property
    def preserve_file(self) -> Path | None:
        """The file with the prompts of the preserve terms; None if they come from elsewhere or from training."""
        named = not self.preserves or self.preserve_prompts in (ELSEWHERE, TRAINING)
        return None if named else Path(self.preserve_prompts)

    @property
    def rows_at_once(self) -> int:
        """Rows of the reconstruction term in one micro-batch of a worker."""
        return self.batch_size // (self.world * self.gradient_accumulation_steps)

    @property
    def centers(self) -> bool:
        """Whether the mean of the assigned noises is subtracted from each, if rows have assigned noise."""
        return self.trains_on_assigned if self.center_noise is None else self.center_noise

    @property
    def trains_on_assigned(self) -> bool:
        """Whether assigned noise, if rows have it, is trained on or starts a search."""
        return self.noise == "matched" or self.keeps_noise

    def check_noise(self, group: str = "") -> None:
        """Raises UserError for options that do not apply to this noise."""
        if self.center_noise and not self.trains_on_assigned:
            raise UserError(
                f"--{group}center-noise applies to assigned noise; the mean of --noise {self.noise} is zero: leave one out"
            )

    def check_shares(self, rows: int, where: str, group: str = "") -> None:
        """Raises UserError if a batch is larger than the data, or does not divide among workers and micro-batches."""
        if self.batch_size > rows:
            raise UserError(f"--{group}batch-size: {self.batch_size} is more than the {rows} {where}")
        parts = self.world * self.gradient_accumulation_steps
        among = f"{self.world} workers" + (
            f" × {self.gradient_accumulation_steps} micro-batches" if self.gradient_accumulation_steps > 1 else ""
        )
        if self.batch_size % parts:
            raise UserError(f"--{group}batch-size: {self.batch_size} does not divide among {among}")
        if self.preserve_differences and self.preserve_rows % 2:
            raise UserError(
                f"--{group}preserve-differences needs pairs of rows: --{group}preserve-batch-size {self.preserve_rows} is odd"
            )


class TrainJob(TrainSettings, PairFields, BucketSettings, PromptEmbeddings):
    """Fine-tune a model on assigned noise (the M-step)."""

    assignments: Location | None = resolved(
        None,
        description="folder or URL of `ortho assign` (none: train on --pairs, with --noise online or random)",
    )
    model: ModelPath = resolved(
        description="model folder to start from; if it has a LoRA adapter, training continues with that adapter"
    )
    out: OutputPath = conduct(description="folder for checkpoints and curves; the same command again resumes")
    pairs: PairsLocation | None = resolved(
        None,
        description="without --assignments: the pair set; with it: the pair set's new location, if it has moved",
    )
    preserve_model: ModelPath | None = resolved(
        None, description="model f_0 that the preserve terms stay close to (none: --model)"
    )

    @property
    def title(self) -> str:
        """The name of the run for people. In EM every M-step's folder is `train`, so the parent is named too."""
        return "/".join(self.out.parts[-2:])
