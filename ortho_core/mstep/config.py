"""The options of an M-step: its loss, its updates, and the search before them."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from ortho_core.estep.config import MEASURED_WITH, ReconstructionWeights
from ortho_core.marks import conduct, decides

#: The noise of a row: assigned, random, the base noise of its search, or found by a search before the update (online).
NoiseKind = Literal["matched", "random", "base", "online"]

#: By default there is one preserve row for this number of training rows.
PRESERVE_SHARE = 4


class SftConfig(ReconstructionWeights):
    """The weights of the M-step's four terms; a term of weight 0 costs nothing."""

    preserve_latent_weight: float = decides(
        1.0, ge=0, description="weight of mean((f_θ(ε',c) - f_0(ε',c))²) at fresh ε'; see preserve_prompts"
    )
    preserve_pixel_weight: float = decides(0.0, ge=0, description="weight of mean|D f_θ(ε',c) - D f_0(ε',c)|; decodes")
    preserve_differences: bool = decides(
        False,
        description="the preserve terms preserve the difference between the outputs at two noises of a prompt, not each "
        "output: what all images of a prompt have in common may change",
    )

    @property
    def preserves(self) -> bool:
        return bool(self.preserve_latent_weight or self.preserve_pixel_weight)


class MStepConfig(SftConfig):
    """The options of the updates."""

    optimizer: Literal["adamw", "adafactor"] = decides(
        "adamw", description="adafactor keeps row and column sums in place of AdamW's two moments: far less memory"
    )
    lr: float = decides(1e-4, gt=0, description="learning rate")
    lr_schedule: Literal["constant", "linear", "cosine"] = decides("constant", description="after the warm-up")
    warmup_steps: int = decides(0, ge=0, description="updates over which the learning rate rises from 0")
    weight_decay: float = decides(0.0, ge=0, description="weight decay of the optimiser")
    max_grad_norm: float = decides(1.0, gt=0, description="gradients are clipped to this norm")
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = decides(
        "auto",
        description="precision of the network, by autocast; trained weights stay float32, with LoRA the frozen weights are in "
        "half precision too (auto: no on a CPU; on a GPU fp16, for flow models bf16; fp16 scales the loss)",
    )
    gradient_accumulation_steps: int = conduct(
        1,
        ge=1,
        description="micro-batches of each worker's share of an update: less memory, same update",
    )
    ema: bool = decides(False, description="also average the weights over the updates, saved as NAME-ema")
    ema_decay: float = decides(
        0.999, ge=0, lt=1, description="decay of that average; at update n at most (1 + n) / (10 + n)"
    )


def schedule(given: object) -> object:
    """Check a text such as `6`, or `8:2` for 8 at the first update and 2 at the last. Raises ValueError."""
    if isinstance(given, bool) or not isinstance(given, int | str):
        return given
    first, colon, last = str(given).partition(":")
    ends = [first, last] if colon else [first]
    if not all(end.isascii() and end.isdecimal() and int(end) for end in ends):
        raise ValueError("a number of evaluations, or FIRST:LAST, none of them 0")
    return ":".join(str(int(end)) for end in ends)


class MatchingConfig(BaseModel):
    """The options of matching during training (`--noise online`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    match_steps: Annotated[str, BeforeValidator(schedule)] = decides(
        "6",
        description="online: evaluations (generator forward + backward) per row before each update; FIRST:LAST changes linearly "
        "from the first update to the last",
    )
    match_refresh: float = decides(
        1.0,
        ge=0,
        le=1,
        description="online: r, the share of fresh noise in the variance of a search's start, "
        "√(1-r)·kept + √r·fresh (1: only fresh noise)",
    )
    match_keep: Literal["assigned", "latest"] = decides(
        "assigned",
        description="online, if match_refresh is below 1: the kept noise of a row: its assigned noise, or the noise that its "
        "last search found",
    )
    match_patch_size: int | None = decides(
        None, ge=1, description="online: side of the rotated patches (none: that of the assignments)"
    )
    match_sensitivity_every: int = decides(
        0,
        ge=0,
        description="online: updates between measurements of the generator's sensitivity (0: only at the start)",
    )
    match_dtype: Literal["auto", "float32", "bfloat16", "float16"] = decides(
        "auto",
        description="online: precision of the network during the search, by autocast (auto: as in training)",
    )

    @property
    def most_match_steps(self) -> int:
        """The largest number of evaluations of a row before an update."""
        return max(map(int, self.match_steps.split(":")))

    def match_steps_at(self, update: int, updates: int) -> int:
        """Evaluations of a row before update number `update` of `updates`, counted from 0."""
        first, _, last = self.match_steps.partition(":")
        a, b = int(first), int(last or first)
        return round(a + (b - a) * update / max(1, updates - 1))

    def match_measures_at(self, update: int) -> bool:
        """Whether the sensitivity is measured before this update."""
        every = self.match_sensitivity_every
        return update % every == 0 if every else update == 0

    def match_evaluations(self, updates: int, batch_size: int) -> int:
        """Evaluations of `updates` updates, with those of the sensitivity measurements of one worker."""
        steps = sum(self.match_steps_at(k, updates) for k in range(updates))
        measured = -(-updates // self.match_sensitivity_every) if self.match_sensitivity_every else 1
        return batch_size * steps + MEASURED_WITH * measured
