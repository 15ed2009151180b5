"""How much fits on a GPU: from the counted bytes and an allowance for uncounted ones, with one line that describes it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ortho_core.estep.rows import ROWS_ENCODED_TOGETHER
from ortho_core.memory.costs import SearchCosts, UpdateCosts

GIB = 2**30
#: GPU memory of a process besides its tensors: CUDA's context, the code of kernels, workspaces of cuBLAS and cuDNN.
CONTEXT_BYTES = int(0.7 * GIB)
#: The share of a card that is kept free for bytes that are not counted: fragmentation of PyTorch's allocator, and the temporary
#: workspaces of convolutions.
ALLOCATOR_SHARE = 0.08
#: Without a GPU, more slots gain little speed and use memory that other processes need.
CPU_SLOTS = 16
#: More slots gain no speed on a busy GPU, and most of them would be empty at the end of a shard.
MOST_SLOTS = 64
#: Slots for a model that cannot be counted: few, and halved if memory runs out.
UNCOUNTED_SLOTS = 4
#: Batches of rows that wait for a slot or are being prepared. The inputs of rows in slots are kept too, to start these again.
BATCHES_WAITING = 2
#: Largest size in bytes, and number of entries, of the cache of encoded prompts, as in `PromptCache`.
PROMPT_BYTES, PROMPTS_KEPT = 1 << 30, 4096


def usable_bytes(total: int, share: float = 1.0, free: int | None = None) -> int:
    """Bytes for tensors on a card of `total` bytes: at most `share` of it, and at most `free`, with this process's own."""
    room = total * min(1.0, share) - CONTEXT_BYTES
    return int((room if free is None else min(room, free)) * (1 - ALLOCATOR_SHARE))


def round_down(slots: int) -> int:
    """Round down to 1, 2, 3, 4, 6, 8, 12, ...: then machines with slightly different free memory use equally many slots."""
    best = 1
    for power in range(7):
        for value in (2**power, 3 * 2**power):
            if best < value <= min(slots, MOST_SLOTS):
                best = value
    return best


@dataclass(frozen=True)
class SearchPlan:
    """The number of slots, the images encoded and decoded at once (0: one image in tiles), and the bytes needed."""

    usable: int
    weights: int
    each: int
    slots: int
    encoded: int
    decoded: int
    peak: int
    #: Whether images are decoded besides the evaluations.
    decodes: bool = True
    #: Whether the text encoders are on the GPU only while they encode.
    parked: bool = False
    #: Whether activations are recomputed in the backward pass.
    gradient_checkpointing: bool = False

    @property
    def fits(self) -> bool:
        return self.peak <= self.usable

    @property
    def sliced(self) -> bool:
        """Whether the autoencoder processes one image at a time."""
        return min(self.encoded, self.decoded) < ROWS_ENCODED_TOGETHER

    @property
    def tiled(self) -> bool:
        """Whether the autoencoder processes one tile at a time."""
        return not (self.encoded and self.decoded)

    def line(self) -> str:
        """The log line: bytes of the weights and of a slot, and the chosen plan."""
        done = "encoded and decoded" if self.decodes else "encoded"
        once = {ROWS_ENCODED_TOGETHER: "", 1: f", images {done} one at a time", 0: f", images {done} in tiles"}
        text = (
            f"memory: {_gib(self.weights)} of weights, {_gib(self.each)} a slot: {self.slots} slot{'s' * (self.slots > 1)}"
            f"{once[min(self.encoded, self.decoded)]}{', text encoders on the GPU only to encode' * self.parked}"
            f"{', activations computed twice' * self.gradient_checkpointing}"
            f"; {_gib(self.peak)} planned of {_gib(self.usable)} to use"
        )
        return text if self.fits else f"{text}, which does not fit"

    def as_json(self) -> dict[str, object]:
        """For a dry run."""
        return {
            "weights_gib": _number(self.weights),
            "gib_per_slot": _number(self.each),
            "slots": self.slots,
            "images_encoded_at_once": self.encoded,
            "images_decoded_at_once": self.decoded,
            "text_encoders_parked": self.parked,
            "gradient_checkpointing": self.gradient_checkpointing,
            "planned_gib": _number(self.peak),
            "usable_gib": _number(self.usable),
            "fits": self.fits,
        }


def kept_prompts(prompt: int, rows: int) -> int:
    """Bytes of the cached prompts of `rows` rows with different prompts, each of `prompt` bytes."""
    return min(PROMPT_BYTES, min(rows, PROMPTS_KEPT) * prompt)


def plan_search(
    costs: SearchCosts,
    usable: int,
    most: int,
    rows: int,
    judges: int = 0,
    decodes: bool = True,
    parked: bool = False,
    sizes: int = 1,
) -> SearchPlan:
    """As many slots as fit, at most `most`, for a search over `rows` rows; `judges` are the bytes of other loaded models.

    `sizes` is the number of sizes of images: each has its own slots, of which those of one size are evaluated at a time; at
    most as many other images as they have wait for them. `decodes`: images at the assigned noise are decoded besides the
    evaluations. `parked`: the text encoders are on the GPU only while they encode.
    """
    texts = costs.weights.text if parked else 0
    weights = costs.weights.all - texts + judges
    prompts = kept_prompts(costs.prompt, rows)
    waiting = BATCHES_WAITING * ROWS_ENCODED_TOGETHER * costs.row + ROWS_ENCODED_TOGETHER * costs.image
    fixed = weights + prompts + waiting
    waits = sizes if sizes == 1 else 2 * sizes
    each = sizes * costs.slots.each + costs.evaluation.each + waits * costs.row
    slots = round_down(min(most, (usable - fixed - sizes * costs.slots.base - costs.evaluation.base) // max(1, each)))
    slots = min(slots, most)
    between = fixed + sizes * costs.slots(slots) + waits * slots * costs.row

    def at_once(cost: Callable[[int], int], tile: int) -> tuple[int, int]:
        for count in (ROWS_ENCODED_TOGETHER, 1):
            if between + cost(count) <= usable:
                return count, cost(count)
        return 0, tile

    encoded, encode = at_once(costs.encode, costs.encode_tile)
    decoded, decode = at_once(costs.decode, costs.decode_tile) if decodes else (ROWS_ENCODED_TOGETHER, 0)
    text = texts + costs.text(ROWS_ENCODED_TOGETHER)
    forward = costs.forward(decoded or 1) if decodes else 0
    peak = between + max(costs.evaluation(slots), encode, decode, forward, text)
    return SearchPlan(usable, weights, each, slots, encoded, decoded, peak, decodes, parked)


@dataclass(frozen=True)
class UpdatePlan:
    """How an update is computed, and the bytes needed."""

    usable: int
    weights: int
    kept: int
    micro_batches: int
    gradient_checkpointing: bool
    peak: int
    #: Number of prompts that stay encoded on the GPU.
    prompts: int = 0

    @property
    def fits(self) -> bool:
        return self.peak <= self.usable

    def as_json(self) -> dict[str, object]:
        """For a dry run."""
        return {
            "weights_gib": _number(self.weights),
            "kept_between_updates_gib": _number(self.kept),
            "gradient_checkpointing": self.gradient_checkpointing,
            "planned_gib": _number(self.peak),
            "usable_gib": _number(self.usable),
            "fits": self.fits,
        }


def plan_update(
    costs: UpdateCosts,
    usable: int,
    rows: int,
    preserve_rows: int,
    micro_batches: int,
    parked: int,
    checkpointing: bool,
    prompts: int = 0,
) -> UpdatePlan:
    """The plan of an update of `rows` rows on one worker, in micro-batches; `parked` bytes of the weights are not on the GPU.

    `prompts` stay encoded on the GPU. With online matching, the search may need more bytes than the update.
    """
    weights = costs.weights.all - parked
    part = math.ceil(rows / micro_batches), math.ceil(preserve_rows / micro_batches)
    kept = costs.kept + kept_prompts(costs.prompt, prompts) + costs.slots(part[0])
    peak = weights + kept + max(costs.update(*part), costs.evaluation(part[0]))
    return UpdatePlan(usable, weights, kept, micro_batches, checkpointing, peak, prompts)


def smaller_updates(
    plan: UpdatePlan,
    costs: Callable[[bool], UpdateCosts],
    rows: int,
    preserve_rows: int,
    parked: int,
) -> Iterator[UpdatePlan]:
    """The same update in more micro-batches, then also with gradient checkpointing: all plans that need less than `plan`."""
    for checkpointing in (False, True):
        if plan.gradient_checkpointing and not checkpointing:
            continue
        counted = costs(checkpointing)
        for pieces in (n for n in range(1, rows + 1) if rows % n == 0 and n >= plan.micro_batches):
            where = rows, preserve_rows, pieces, parked, checkpointing, plan.prompts
            other = plan_update(counted, plan.usable, *where)
            if other.peak < plan.peak:
                yield replace(other, usable=plan.usable)


def _number(size: int) -> float:
    return round(size / GIB, 2)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size < 10 * GIB else f"{size / GIB:.1f} GiB"
