"""The GPU memory of a search: planned on the worker, or in a dry run for a GPU that need not exist."""

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
from rayjobs.verb.models import say_counting


@dataclass(frozen=True)
class Searched:
    """What decides the memory of a search."""

    model: ModelFolder
    dtype: str
    config: SearchConfig
    #: The largest batch size, and the rows of the whole run.
    most: int
    rows: int
    gradient_checkpointing: bool = False
    #: The objective if it is no reconstruction, and the settings that distinguish it from other objectives.
    objective: Callable[[OneStepGenerator], Objective] | None = None
    decided_by: Mapping[str, object] | None = None
    #: The device of the objective's networks.
    device: str = "cpu"
    #: Bytes of other models on the GPU.
    judges: int = 0
    #: Whether images are decoded outside of the search, as for its results.
    decodes: bool = True
    #: The format of the network's weights in memory.
    quantize: str = "none"
    #: Whether the text encoders are on the GPU only while they encode.
    parked: bool = False
    #: The number of sizes of the images, each with slots of its own; `model` has the largest.
    sizes: int = 1

    def plan(self, usable: int, allocated: int = 0) -> SearchPlan:
        """The plan for `usable` bytes. `allocated` of them are in use by loaded models; 0: no model is loaded yet.

        Raises any error that occurs while the model's memory is counted.
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
        plan = plan_search(costs, usable, self.most, self.rows, judges, self.decodes, self.parked, self.sizes)
        return replace(plan, gradient_checkpointing=self.gradient_checkpointing)

    def fitting(self, usable: int, allocated: int = 0) -> SearchPlan:
        """The first plan that fits: unchanged, with the text encoders parked, with activations computed twice, with both.

        If none fits, the last. Raises like `plan`.
        """
        if self.model.class_config is not None:  # a class-conditional model has none of these ways
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
    """The batch size on the worker's GPU, of which the worker has `share`. Sets the autoencoder to slices or tiles if needed.

    A line on the plan is appended to `notes`.
    """
    try:
        plan = searched.fitting(*usable_on(generator, share, gpu_memory))
    except Exception as error:  # an architecture whose memory cannot be counted must still run
        why = " ".join(str(error).split())[:200] or type(error).__name__
        slots = min(UNCOUNTED_SLOTS, searched.most)
        notes.append(f"memory: not counted for this model ({why}): {slots} slots, halved if memory runs out")
        return slots
    notes.append(plan.line())
    spare(generator, plan)
    return plan.slots


def usable_on(generator: OneStepGenerator, share: float | None, gpu_memory: float | None) -> tuple[int, int]:
    """Bytes for this process's tensors on its GPU, limited to `gpu_memory` GiB; and the bytes that it has allocated."""
    import torch

    free, total = torch.cuda.mem_get_info(generator.device)
    reserved = torch.cuda.memory_reserved(generator.device)
    total = min(total, int(gpu_memory * GIB)) if gpu_memory is not None else total
    return usable_bytes(total, share or 1.0, free + reserved), torch.cuda.memory_allocated(generator.device)


def spare(generator: OneStepGenerator, plan: SearchPlan) -> None:
    """Apply a plan to a pipeline: the autoencoder processes one image at a time, or tiles of a quarter of it; the text encoders
    leave the GPU after encoding; the network computes activations twice."""
    pipeline: Any = generator
    autoencoder = getattr(getattr(generator, "pipeline", None), "vae", None)
    if autoencoder is None:
        return
    pipeline.parks_text = plan.parked
    if plan.gradient_checkpointing:
        pipeline.compute_twice()
    if plan.sliced:
        autoencoder.enable_slicing()
    if plan.tiled:
        pipeline.adapter.tile(autoencoder, generator.image_size)


def smaller(searched: Searched) -> dict[str, Searched]:
    """Option changes, common to all verbs, that need less memory: the changed search by the text of the change."""
    halved = searched.dtype == "float32"
    half = searched.model.half or "float16"
    here = replace(searched, dtype=half) if halved else searched
    changes = {f"set --dtype {half}": here} if halved else {}
    if searched.quantize == "none" and searched.model.class_config is None:
        options = f"set --dtype {half} --quantize" if halved else "set --quantize"
        changes |= {f"{options} {kind}": replace(here, quantize=kind) for kind in ("int8", "nf4")}
    return changes


def described(
    searched: Searched, share: float | None, gpu_memory: float, changes: Mapping[str, Searched]
) -> dict[str, object]:
    """What a dry run prints for a GPU of `gpu_memory` GiB; if the search does not fit, with the first of `changes` that fits."""
    say_counting(searched.model)
    usable = usable_bytes(int(gpu_memory * GIB), share or 1.0)
    plan = searched.fitting(usable)
    report: dict[str, object] = {"gpu_memory_gib": gpu_memory, **plan.as_json(), "said": plan.line()}
    if plan.fits:
        return report
    plans = {change: other.fitting(usable) for change, other in changes.items()}
    fitting = [f"{change}: {other.line()}" for change, other in plans.items() if other.fits]
    return report | {"to_fit": fitting[:1] or ["use a larger GPU: no option of this verb makes it fit"]}
