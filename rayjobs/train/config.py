"""The options of `ortho train`."""

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator

from ortho_core.errors import UserError
from ortho_core.generators.lora_config import Lora
from ortho_core.marks import conduct, decides, resolved
from ortho_core.mstep.config import PRESERVE_SHARE, MatchingConfig, MStepConfig, NoiseKind
from ortho_core.pairs.rows import PairFields
from ortho_core.storage.location import Location, ModelPath, OutputPath, PairsLocation, Place
from rayjobs.training.config import TrainingSettings
from rayjobs.verb.precision import Quantize

#: Values of `--preserve-prompts` that are no files.
ELSEWHERE, TRAINING = "elsewhere", "training"

PreservePrompts = Annotated[str, Place(names=f"{ELSEWHERE}|{TRAINING}", existing_first=True)]


def _names(value: object) -> object:
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


class TrainSettings(MStepConfig, MatchingConfig, TrainingSettings):
    """How the M-step runs; `em` has these under `train.`."""

    noise: NoiseKind = decides(
        "matched",
        description="matched: the assigned noise; online: matched anew before each update (--match-steps); random: direct SFT; "
        "base: what the search began from, to distil the images that `ortho reward` found",
    )
    center_noise: bool | None = decides(
        None,
        description="take the mean of all assigned noise off each, so that as a whole it is centred as N(0, I) is (none: where "
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
        description="prompts of the preserve terms: elsewhere (prompts of all kinds, which Ortho brings; of a class-conditional "
        "model the classes that no row has), training (those trained on), or a file: one a line, or .jsonl with `prompt`",
    )
    lora_rank: int = decides(
        0, ge=0, description="train an adapter of this rank instead of all weights (0: all weights)"
    )
    lora_alpha: float | None = decides(
        None, gt=0, description="scale of the adapter, alpha / rank (none: alpha = rank)"
    )
    lora_targets: Annotated[tuple[str, ...], BeforeValidator(_names)] = decides(
        Lora.targets, description="endings of the names of the layers that get an adapter"
    )
    quantize: Quantize = decides(
        "none",
        description="pack the frozen base under --lora-rank in 8 or 4 bits, for small GPUs (docs/guides/devices.md)",
    )
    lora_merge: bool = decides(False, description="save whole models with the adapter merged in, not adapters")
    single_file: bool = conduct(
        False,
        description="add single_file.safetensors to each checkpoint: the model in float16, for ComfyUI and A1111",
    )
    gradient_checkpointing: bool = conduct(
        False, description="compute activations twice and keep fewer (left out: where nothing else fits the GPU)"
    )
    compile: bool = conduct(False, description="torch.compile the network")
    parallel: Literal["ddp", "fsdp"] = conduct(
        "ddp",
        description="fsdp: shard weights, gradients and optimiser over the workers, for what does not fit one GPU",
    )
    readers_per_worker: int = conduct(1, ge=1, description="processes that read and decode ahead of each worker")
    shuffle_window: int = decides(65_536, ge=1, description="rows among which the order is random, memory permitting")
    validation: Location | None = resolved(
        None, description="assignments of held-out pairs, made by `ortho assign` with the starting model"
    )
    validation_rows: int = decides(64, ge=1, description="rows of them that are looked at, from the first")
    validate_every: int = decides(0, ge=0, description="updates between validations (0: at the end of each epoch)")
    save_every: int = decides(
        1, ge=0, description="keep checkpoint-epoch-NNN every so many epochs (0: best and final only)"
    )
    max_skipped_updates: int = conduct(
        10, ge=0, description="updates left out because their gradient was not finite, before the run gives up"
    )
    allow_stale: bool = conduct(False, description="train on noise that was matched to another model than --model")
    gpu_memory: float | None = conduct(
        None,
        gt=0,
        description="with --dry-run: say whether an update fits a GPU of so many GiB, which need not be there",
    )
    seed: int = decides(0, ge=0, description="decides the order of rows and every random noise")

    @property
    def alpha(self) -> float:
        return self.lora_alpha or float(self.lora_rank)

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(self.lora_targets)

    @property
    def loaded_in(self) -> tuple[str, ...]:
        """The precisions that models may be loaded in: float32, and what frozen weights are halved to."""
        halved = self.lora_rank and self.parallel == "ddp" and self.mixed_precision != "no"
        half = {"auto": "float16", "fp16": "float16", "bf16": "bfloat16"}
        return ("float32", half[self.mixed_precision]) if halved else ("float32",)

    @property
    def keeps_noise(self) -> bool:
        """Whether the rows' noise is refreshed from some that is kept."""
        return self.noise == "online" and self.match_refresh < 1

    @property
    def preserve_rows(self) -> int:
        """Rows of the preserve terms in one update, over all workers."""
        if not self.preserves:
            return 0
        size = 2 if self.preserve_differences else 1  # a difference is of two rows
        return self.preserve_batch_size or size * math.ceil(self.batch_size / PRESERVE_SHARE / size)

    @property
    def preserve_file(self) -> Path | None:
        """The file that the prompts of the preserve terms are read from."""
        named = not self.preserves or self.preserve_prompts in (ELSEWHERE, TRAINING)
        return None if named else Path(self.preserve_prompts)

    @property
    def rows_at_once(self) -> int:
        """Rows of the reconstruction term that one worker computes with at once."""
        return self.batch_size // (self.world * self.gradient_accumulation_steps)

    @property
    def centers(self) -> bool:
        """Whether the mean of the assigned noise is taken off each, where rows have any."""
        return self.trains_on_assigned if self.center_noise is None else self.center_noise

    @property
    def trains_on_assigned(self) -> bool:
        """Whether assigned noise, where rows have any, is trained on or searched from."""
        return self.noise == "matched" or self.keeps_noise

    def check_noise(self, group: str = "") -> None:
        """Raises UserError for options that have nothing to say of this noise."""
        if self.center_noise and not self.trains_on_assigned:
            raise UserError(
                f"--{group}center-noise is of assigned noise; --noise {self.noise} has a mean of zero as it is: leave one out"
            )

    def check_shares(self, rows: int, where: str, group: str = "") -> None:
        """Raises UserError where a batch is too large for the data or does not divide among workers and micro-batches."""
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
                f"--{group}preserve-differences is of two rows each: --{group}preserve-batch-size {self.preserve_rows} is odd"
            )


class TrainJob(TrainSettings, PairFields):
    """Fine-tune a model on assigned noise (the M-step)."""

    assignments: Location | None = resolved(
        None,
        description="folder or URL that `ortho assign` wrote to (none: train on --pairs, --noise online or random)",
    )
    model: ModelPath = resolved(
        description="model folder to start from; one with a LoRA adapter goes on with that adapter"
    )
    out: OutputPath = conduct(description="folder for checkpoints and curves; the same command again resumes")
    pairs: PairsLocation | None = resolved(
        None,
        description="pair set, where there are no assignments; with them, where the images are, if not where they were made from",
    )
    preserve_model: ModelPath | None = resolved(
        None, description="model f_0 that the preserve terms hold to (default: --model)"
    )

    @property
    def title(self) -> str:
        """What people call the run: in EM every M-step's folder is called `train`."""
        return "/".join(self.out.parts[-2:])
