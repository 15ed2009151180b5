"""What a dry run says of the memory of an update, for a GPU that need not be there."""

from dataclasses import dataclass

import torch

from ortho_core.estep.config import AssignConfig
from ortho_core.generators.lora_config import Lora
from ortho_core.memory.costs import UpdateCosts, update_costs
from ortho_core.memory.plan import GIB, UpdatePlan, plan_update, smaller_updates, usable_bytes
from ortho_core.mstep.data import MatchedData
from ortho_core.mstep.matching import match_search
from ortho_core.mstep.update import half_dtype
from rayjobs.train.config import TrainSettings
from rayjobs.train.models import TrainModels
from rayjobs.verb.remedies import remedies

#: What a dry run adds where the network is sharded.
SHARDED = (
    "counted as if each worker held all of it: --parallel fsdp divides weights, gradients, averages and the optimiser's state "
    "among the {workers} workers, so each takes less than is planned here"
)


@dataclass(frozen=True)
class Updates:
    """What decides the memory of an update."""

    job: TrainSettings
    models: TrainModels
    #: Whether images are encoded while it trains.
    encodes: bool
    #: That of online noise.
    search: AssignConfig | None
    #: How many different prompts there are at most, besides those of general preserve rows.
    prompts: int

    @staticmethod
    def of(job: TrainSettings, models: TrainModels, data: MatchedData) -> "Updates":
        """Of a job whose data are read."""
        search = match_search(job, job, data.noise_settings) if job.noise == "online" else None
        prompts = data.order.rows + len(data.preserve_prompts)
        return Updates(job, models, data.needs_images or data.encodes, search, prompts)

    def costs(self, checkpointing: bool) -> UpdateCosts:
        """What one counts. Raises whatever goes wrong where a model cannot be counted."""
        job, models = self.job, self.models
        half = half_dtype(torch.device("cuda"), job)
        named = {None: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}[half]
        frozen = named if job.lora_rank and job.parallel == "ddp" else "float32"
        # Said, as "auto" is float32 on the CPU that the tensors pretend to be on.
        computed = {None: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}[half]
        return update_costs(
            models.model,
            job.model_copy(update={"mixed_precision": computed}),
            dtype=frozen,
            lora=Lora(job.lora_rank, job.alpha, job.targets) if job.lora_rank else None,
            gradient_checkpointing=checkpointing,
            second_network=job.preserves and not (job.lora_rank and adapted(models)),
            quantize=job.quantize,
            search=self.search,
            searches_in=half if frozen != "float32" or job.match_dtype == "auto" else autocast_of(job.match_dtype),
        )

    @property
    def rows(self) -> tuple[int, int]:
        """Of an update on one worker: rows and preserve rows."""
        job = self.job
        return job.rows_at_once * job.gradient_accumulation_steps, -(-job.preserve_rows // job.world)

    def parked(self, costs: UpdateCosts) -> int:
        """Bytes of weights that are off the card by then."""
        needed = self.encodes or self.job.pixel_l1_weight or self.job.preserve_pixel_weight
        return 0 if needed else costs.weights.autoencoder

    def plan(self, usable: int, checkpointing: bool) -> UpdatePlan:
        """For so many bytes. Raises as `costs` does."""
        costs, steps = self.costs(checkpointing), self.job.gradient_accumulation_steps
        return plan_update(costs, usable, *self.rows, steps, self.parked(costs), checkpointing, self.prompts)

    def fitting(self, usable: int) -> UpdatePlan:
        """As the job says; where that does not fit and computing activations twice makes it, with that."""
        asked = self.job.gradient_checkpointing
        plan = self.plan(usable, asked)
        if plan.fits or asked or self.models.model.class_config is not None:
            return plan
        twice = self.plan(usable, True)
        return twice if twice.fits else plan


def memory_of(updates: Updates) -> dict[str, object]:
    """What a dry run says of a GPU of `job.gpu_memory` GiB."""
    job = updates.job
    assert job.gpu_memory is not None
    plan = updates.fitting(usable_bytes(int(job.gpu_memory * GIB)))
    found: dict[str, object] = {"gpu_memory_gib": job.gpu_memory, **plan.as_json()}
    counted = updates.costs(plan.gradient_checkpointing)
    if updates.search is not None:
        matching = plan.weights + plan.kept + counted.evaluation(job.rows_at_once)
        found["planned_while_matching_gib"] = round(matching / GIB, 2)
    if job.parallel == "fsdp" and job.world > 1:
        found["parallel"] = SHARDED.format(workers=job.world)
    if plan.fits:
        return found
    others = smaller_updates(plan, updates.costs, *updates.rows, updates.parked(counted))
    fitting = next((other for other in others if other.fits), None)
    changes = [said(plan, fitting)] if fitting is not None else remedies(job, rows=1)
    return found | {"to_fit": changes or ["a larger card"]}


def checkpoints(updates: Updates, device: torch.device) -> bool:
    """Whether a worker on `device` computes activations twice: where that was asked for, or nothing else fits its GPU."""
    job = updates.job
    if job.gradient_checkpointing or device.type != "cuda":
        return job.gradient_checkpointing
    free, total = torch.cuda.mem_get_info(device)
    try:
        return updates.fitting(usable_bytes(total, job.gpus() or 1.0, free)).gradient_checkpointing
    except Exception:  # a model that is counted nowhere trains as it was asked to
        return False


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
