"""What a dry run says of the memory of an update, for a GPU that need not be there."""

import torch

from ortho_core.estep.config import AssignConfig
from ortho_core.generators.lora_config import Lora
from ortho_core.memory.costs import UpdateCosts, update_costs
from ortho_core.memory.plan import GIB, UpdatePlan, plan_update, smaller_updates, usable_bytes
from ortho_core.mstep.update import half_dtype
from rayjobs.train.config import TrainSettings
from rayjobs.train.models import TrainModels
from rayjobs.verb.remedies import remedies

#: What a dry run adds where the network is sharded.
SHARDED = (
    "counted as if each worker held all of it: --parallel fsdp divides weights, gradients, averages and the optimiser's state "
    "among the {workers} workers, so each takes less than is planned here"
)


def memory_of(
    job: TrainSettings, models: TrainModels, encodes: bool, search: AssignConfig | None, prompts: int
) -> dict[str, object]:
    """For a GPU of `job.gpu_memory` GiB; `encodes`: images are encoded while it trains; `search`: that of online noise.

    `prompts` is how many different ones there are at most, besides those of general preserve rows.
    """
    assert job.gpu_memory is not None
    usable = usable_bytes(int(job.gpu_memory * GIB))
    half = half_dtype(torch.device("cuda"), job)
    named = {None: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}[half]
    frozen = named if job.lora_rank and job.parallel == "ddp" else "float32"
    matched = half if frozen != "float32" or job.match_dtype == "auto" else autocast_of(job.match_dtype)
    # Said, as "auto" is float32 on the CPU that the tensors pretend to be on.
    computed = {None: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}[half]
    settled = job.model_copy(update={"mixed_precision": computed})
    lora = Lora(job.lora_rank, job.alpha, job.targets) if job.lora_rank else None

    def costs(checkpointing: bool) -> UpdateCosts:
        return update_costs(
            models.model,
            settled,
            dtype=frozen,
            lora=lora,
            gradient_checkpointing=checkpointing,
            second_network=job.preserves and not (job.lora_rank and adapted(models)),
            search=search,
            searches_in=matched,
        )

    counted = costs(job.gradient_checkpointing)
    needed = encodes or job.pixel_l1_weight or job.preserve_pixel_weight
    parked = 0 if needed else counted.weights.autoencoder
    rows, preserved = job.rows_at_once * job.gradient_accumulation_steps, -(-job.preserve_rows // job.world)
    given = rows, preserved, job.gradient_accumulation_steps, parked, job.gradient_checkpointing, prompts
    plan = plan_update(counted, usable, *given)
    found: dict[str, object] = {"gpu_memory_gib": job.gpu_memory, **plan.as_json()}
    if search is not None:
        found["planned_while_matching_gib"] = round(
            (plan.weights + plan.kept + counted.evaluation(job.rows_at_once)) / GIB, 2
        )
    if job.parallel == "fsdp" and job.world > 1:
        found["parallel"] = SHARDED.format(workers=job.world)
    if plan.fits:
        return found
    fitting = next((other for other in smaller_updates(plan, costs, rows, preserved, parked) if other.fits), None)
    changes = [said(plan, fitting)] if fitting is not None else remedies(job, rows=1)
    return found | {"to_fit": changes or ["a larger card"]}


def autocast_of(dtype: str) -> torch.dtype | None:
    """What autocast computes in where an option names a dtype; none: it is off."""
    named: torch.dtype = getattr(torch, dtype)
    return None if named == torch.float32 else named


def said(plan: UpdatePlan, fitting: UpdatePlan) -> str:
    """What is to be changed for an update to fit."""
    options = []
    if fitting.micro_batches != plan.micro_batches:
        options.append(f"--gradient-accumulation-steps {fitting.micro_batches}")
    if fitting.gradient_checkpointing != plan.gradient_checkpointing:
        options.append("--gradient-checkpointing")
    return f"set {' '.join(options)}: {fitting.peak / GIB:.2f} GiB planned"


def adapted(models: TrainModels) -> bool:
    """Whether the teacher is the network that trains, with its adapter off or as it was."""
    held = models.held.fingerprint
    return held in (models.model.fingerprint, models.model.base.fingerprint)
