"""What a worker's GPU holds of a search: planned on the worker, or in a dry run for a card that is not there."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from ortho_core.estep.config import SearchConfig
from ortho_core.estep.objective import Objective
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.memory.costs import search_costs
from ortho_core.memory.plan import GIB, UNCOUNTED_SLOTS, SearchPlan, plan_search, usable_bytes


@dataclass(frozen=True)
class Searched:
    """What decides the memory of a search."""

    model: ModelFolder
    dtype: str
    config: SearchConfig
    #: The most images side by side, and the rows of the whole run.
    most: int
    rows: int
    gradient_checkpointing: bool = False
    #: What is searched for where it is no reconstruction, and what tells that apart.
    objective: Callable[[OneStepGenerator], Objective] | None = None
    decided_by: Mapping[str, object] | None = None
    #: Where that has its networks.
    device: str = "cpu"
    #: Bytes of other models beside it.
    judges: int = 0
    #: Whether images of what was found are made, outside of the search.
    decodes: bool = True
    #: In what the weights of the network are kept.
    quantize: str = "none"
    #: Whether the text encoders are on the card only while they encode.
    parked: bool = False

    def plan(self, usable: int, allocated: int = 0) -> SearchPlan:
        """For so many bytes, of which `allocated` are taken by the model and the others beside it, where they are loaded.

        Raises whatever goes wrong where the model cannot be counted.
        """
        costs = search_costs(
            self.model,
            self.dtype,
            self.config,
            gradient_checkpointing=self.gradient_checkpointing,
            quantize=self.quantize,
            objective=self.objective,
            decided_by=self.decided_by,
            device=self.device,
        )
        judges = max(self.judges, allocated - costs.weights.all)
        plan = plan_search(costs, usable, self.most, self.rows, judges, self.decodes, self.parked)
        return replace(plan, gradient_checkpointing=self.gradient_checkpointing)

    def fitting(self, usable: int, allocated: int = 0) -> SearchPlan:
        """The first plan that fits: as it is, with the text encoders parked, with activations computed twice, with both.

        Where none does, the last. Raises as `plan` does.
        """
        if self.model.class_config is not None:  # nothing of it can be
            return self.plan(usable, allocated)
        twice = (False, True) if not self.gradient_checkpointing else (True,)
        for checkpointing, parked in product(twice, (False, True)):
            plan = replace(self, gradient_checkpointing=checkpointing, parked=parked).plan(usable, allocated)
            if plan.fits:
                break
        return plan


def slots_on_gpu(
    searched: Searched, generator: OneStepGenerator, share: float | None, gpu_memory: float | None, notes: list[str]
) -> int:
    """Images side by side on the worker's GPU, of which it has `share`; has the autoencoder work in parts where it must.

    What was planned is appended to `notes`.
    """
    try:
        plan = searched.fitting(*usable_on(generator, share, gpu_memory))
    except Exception as error:  # an architecture that is counted nowhere must still run
        why = " ".join(str(error).split())[:200] or type(error).__name__
        slots = min(UNCOUNTED_SLOTS, searched.most)
        notes.append(f"memory: not counted for this model ({why}): {slots} slots, halved should memory run out")
        return slots
    notes.append(plan.line())
    spare(generator, plan)
    return plan.slots


def usable_on(generator: OneStepGenerator, share: float | None, gpu_memory: float | None) -> tuple[int, int]:
    """Bytes for tensors of this process on its GPU, or on one of `gpu_memory` GiB if that is less; and those it has taken."""
    import torch

    free, total = torch.cuda.mem_get_info(generator.device)
    own = torch.cuda.memory_reserved(generator.device)
    total = min(total, int(gpu_memory * GIB)) if gpu_memory is not None else total
    return usable_bytes(total, share or 1.0, free + own), torch.cuda.memory_allocated(generator.device)


def spare(generator: OneStepGenerator, plan: SearchPlan) -> None:
    """Have a pipeline do what was planned: its autoencoder take one image at a time, or tiles of a quarter of it, its text
    encoders leave the card when they have encoded, its network compute activations twice."""
    pipeline: Any = generator
    autoencoder = getattr(getattr(generator, "pipeline", None), "vae", None)
    if autoencoder is None:
        return
    pipeline.parks_text = plan.parked
    if plan.gradient_checkpointing:
        pipeline.pipeline.unet.enable_gradient_checkpointing()
    if plan.sliced:
        autoencoder.enable_slicing()
    if plan.tiled:
        autoencoder.enable_tiling()
        autoencoder.tile_sample_min_size = max(generator.image_size) // 2
        autoencoder.tile_latent_min_size = max(generator.latent_shape[1:]) // 2


def smaller(searched: Searched) -> dict[str, Searched]:
    """Options of any verb that need less, the search as it is then by what to set."""
    halved = searched.dtype == "float32"
    here = replace(searched, dtype="float16") if halved else searched
    found = {"set --dtype float16": here} if halved else {}
    if searched.quantize == "none" and searched.model.class_config is None:
        said = "set --dtype float16 --quantize" if halved else "set --quantize"
        found |= {f"{said} {kind}": replace(here, quantize=kind) for kind in ("int8", "nf4")}
    return found


def described(
    searched: Searched, share: float | None, gpu_memory: float, changes: Mapping[str, Searched]
) -> dict[str, object]:
    """What a dry run says of a card of `gpu_memory` GiB; where it does not fit, the first of the `changes` that does."""
    usable = usable_bytes(int(gpu_memory * GIB), share or 1.0)
    plan = searched.fitting(usable)
    found: dict[str, object] = {"gpu_memory_gib": gpu_memory, **plan.as_json(), "said": plan.line()}
    if plan.fits:
        return found
    plans = {change: other.fitting(usable) for change, other in changes.items()}
    fitting = [f"{change}: {other.line()}" for change, other in plans.items() if other.fits]
    return found | {"to_fit": fitting[:1] or ["a larger card: no option of this verb makes it fit"]}
