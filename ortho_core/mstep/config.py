"""What decides an M-step: its loss, its updates, the search before them."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from ortho_core.estep.config import MEASURED_WITH, ReconstructionWeights
from ortho_core.marks import conduct, decides

#: What a row trains at: the assigned noise, random noise, the noise its search began from, or what is found before the update.
NoiseKind = Literal["matched", "random", "base", "online"]

#: Of so many rows that are trained on there is one of the preserve terms, where nothing else is said.
PRESERVE_SHARE = 4


class SftConfig(ReconstructionWeights):
    """The weights of the M-step's four terms; a term of weight 0 costs nothing."""

    preserve_latent_weight: float = decides(
        1.0, ge=0, description="weight of mean((f_θ(ε',c) - f_0(ε',c))²) at fresh ε'; see preserve_prompts"
    )
    preserve_pixel_weight: float = decides(0.0, ge=0, description="weight of mean|D f_θ(ε',c) - D f_0(ε',c)|; decodes")
    preserve_differences: bool = decides(
        False,
        description="the preserve terms hold the difference between the outputs at two noises of a prompt, not each: what the "
        "prompt's images have in common is free to change",
    )

    @property
    def preserves(self) -> bool:
        return bool(self.preserve_latent_weight or self.preserve_pixel_weight)


class MStepConfig(SftConfig):
    """How the network is updated."""

    optimizer: Literal["adamw", "adafactor"] = decides(
        "adamw", description="adafactor keeps row and column sums in place of AdamW's two moments: far less memory"
    )
    lr: float = decides(1e-4, gt=0, description="learning rate")
    lr_schedule: Literal["constant", "linear", "cosine"] = decides("constant", description="after the warm-up")
    warmup_steps: int = decides(0, ge=0, description="updates over which the learning rate rises from 0")
    weight_decay: float = decides(0.0, ge=0, description="of the optimiser")
    max_grad_norm: float = decides(1.0, gt=0, description="gradients are clipped to this norm")
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = decides(
        "auto",
        description="what the network computes in, by autocast; weights that train stay float32, with LoRA the frozen ones are "
        "halved too (auto: no on a CPU, fp16 on a GPU; fp16 scales the loss)",
    )
    gradient_accumulation_steps: int = conduct(
        1,
        ge=1,
        description="micro-batches that each worker's share of an update is computed in: less memory, same update",
    )
    ema: bool = decides(False, description="also average the weights over the updates, saved beside as NAME-ema")
    ema_decay: float = decides(0.999, ge=0, lt=1, description="of that average, approached as (1 + n) / (10 + n)")


def schedule(given: object) -> object:
    """`6`, or `8:2` from the first update to the last."""
    if isinstance(given, bool) or not isinstance(given, int | str):
        return given
    first, colon, last = str(given).partition(":")
    ends = [first, last] if colon else [first]
    if not all(end.isascii() and end.isdecimal() and int(end) for end in ends):
        raise ValueError("a number of evaluations, or FIRST:LAST, none of them 0")
    return ":".join(str(int(end)) for end in ends)


class MatchingConfig(BaseModel):
    """How noise is matched while training; for `--noise online`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    match_steps: Annotated[str, BeforeValidator(schedule)] = decides(
        "6",
        description="online: evaluations (generator forward + backward) of each row before each update; FIRST:LAST goes evenly "
        "from one to the other over the updates",
    )
    match_refresh: float = decides(
        1.0,
        ge=0,
        le=1,
        description="online: r, the fresh part of the variance of the noise that a search starts from, "
        "√(1-r)·kept + √r·fresh (1: fresh noise alone)",
    )
    match_keep: Literal["assigned", "latest"] = decides(
        "assigned",
        description="online: what is kept of a row where it is not all fresh: its assigned noise, or what was found the last "
        "time it was trained on",
    )
    match_patch_size: int | None = decides(
        None, ge=1, description="online: side of the patches that are rotated (none: as the assignments have it)"
    )
    match_sensitivity_every: int = decides(
        0,
        ge=0,
        description="online: updates after which it is measured again what the generator answers to (0: at the start alone)",
    )
    match_dtype: Literal["auto", "float32", "bfloat16", "float16"] = decides(
        "auto",
        description="online: what the network computes in while noise is searched for, by autocast (auto: as it trains)",
    )

    @property
    def most_match_steps(self) -> int:
        """Evaluations of a row before the update that has most of them."""
        return max(map(int, self.match_steps.split(":")))

    def match_steps_at(self, update: int, updates: int) -> int:
        """Evaluations of a row before one of so many updates, counted from 0."""
        first, _, last = self.match_steps.partition(":")
        a, b = int(first), int(last or first)
        return round(a + (b - a) * update / max(1, updates - 1))

    def match_measures_at(self, update: int) -> bool:
        """Whether the sensitivity is measured before this update."""
        every = self.match_sensitivity_every
        return update % every == 0 if every else update == 0

    def match_evaluations(self, updates: int, batch_size: int) -> int:
        """Evaluations of so many updates, those of the measurements among them, which every worker makes for itself."""
        steps = sum(self.match_steps_at(k, updates) for k in range(updates))
        measured = -(-updates // self.match_sensitivity_every) if self.match_sensitivity_every else 1
        return batch_size * steps + MEASURED_WITH * measured
