"""The memory of an update: planned in a dry run, whose machine does not need the GPU, and what to change if it runs out."""

from dataclasses import dataclass

import torch

from ortho_core.estep.config import AssignConfig
from ortho_core.memory.costs import UpdateCosts, update_costs
from ortho_core.memory.plan import GIB, UpdatePlan, plan_update, smaller_updates, usable_bytes
from ortho_core.mstep.data import MatchedData
from ortho_core.mstep.matching import match_search
from ortho_core.mstep.update import half_dtype
from rayjobs.train.config import TrainJob, TrainSettings
from rayjobs.train.models import TrainModels
from rayjobs.verb.faults import memory_used, said_of_memory
from rayjobs.verb.models import say_counting
from rayjobs.verb.prompt_embeddings import PromptEmbeddings
from rayjobs.verb.remedies import remedies

#: The note of a dry run about a sharded network.
SHARDED = (
    "planned as if each worker had the full model: --parallel fsdp divides weights, gradients, averages and the optimiser's "
    "state among the {workers} workers, so each needs less than planned"
)


@dataclass(frozen=True)
class Updates:
    """What decides the memory of an update."""

    job: TrainSettings
    models: TrainModels
    #: Whether images are encoded during training.
    encodes: bool
    #: The search for online noise.
    search: AssignConfig | None
    #: The most different prompts, without those of general preserve rows.
    prompts: int

    @staticmethod
    def of(job: TrainSettings, models: TrainModels, data: MatchedData) -> "Updates":
        """From a job and its opened data."""
        search = match_search(job, job, data.noise_settings) if job.noise == "online" else None
        prompts = data.order.rows + len(data.preserve_prompts)
        return Updates(job, models, data.needs_images or data.encodes, search, prompts)

    def costs(self, checkpointing: bool) -> UpdateCosts:
        """The counted costs. Raises whatever error a model that cannot be counted gives."""
        job, models = self.job, self.models
        half = half_dtype(torch.device("cuda"), job, models.model.half)
        named = {None: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}[half]
        frozen = named if job.lora_rank and job.parallel == "ddp" else "float32"
        # Set explicitly, because "auto" would be float32 on the CPU where the costs are counted.
        computed = {None: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}[half]
        return update_costs(
            models.model,
            job.model_copy(update={"mixed_precision": computed}),
            dtype=frozen,
            lora=job.adapter(models.model),
            gradient_checkpointing=checkpointing,
            second_network=job.preserves and not (job.lora_rank and adapted(models)),
            quantize=job.quantize,
            search=self.search,
            searches_in=half if frozen != "float32" or job.match_dtype == "auto" else autocast_of(job.match_dtype),
        )

    @property
    def rows(self) -> tuple[int, int]:
        """Rows and preserve rows of an update on one worker."""
        job = self.job
        return job.rows_at_once * job.gradient_accumulation_steps, -(-job.preserve_rows // job.world)

    def parked(self, costs: UpdateCosts) -> int:
        """Bytes of weights that are not on the GPU during an update."""
        needed = self.encodes or self.job.pixel_l1_weight or self.job.preserve_pixel_weight
        embedded = isinstance(self.job, PromptEmbeddings) and self.job.prompt_embeddings is not None
        return (0 if needed else costs.weights.autoencoder) + (costs.weights.text if embedded else 0)

    def plan(self, usable: int, checkpointing: bool) -> UpdatePlan:
        """The plan for `usable` bytes. Raises as `costs` does."""
        costs, steps = self.costs(checkpointing), self.job.gradient_accumulation_steps
        return plan_update(costs, usable, *self.rows, steps, self.parked(costs), checkpointing, self.prompts)

    def fitting(self, usable: int) -> UpdatePlan:
        """The plan with the job's options; if it does not fit, with gradient checkpointing, if that fits."""
        requested = self.job.gradient_checkpointing
        plan = self.plan(usable, requested)
        if plan.fits or requested or self.models.model.class_config is not None:
            return plan
        twice = self.plan(usable, True)
        return twice if twice.fits else plan


def memory_of(updates: Updates) -> dict[str, object]:
    """What a dry run reports for a GPU of `job.gpu_memory` GiB."""
    job = updates.job
    assert job.gpu_memory is not None
    say_counting(updates.models.model)
    plan = updates.fitting(usable_bytes(int(job.gpu_memory * GIB)))
    report: dict[str, object] = {"gpu_memory_gib": job.gpu_memory, **plan.as_json()}
    counted = updates.costs(plan.gradient_checkpointing)
    if updates.search is not None:
        matching = plan.weights + plan.kept + counted.evaluation(job.rows_at_once)
        report["planned_while_matching_gib"] = round(matching / GIB, 2)
    if job.parallel == "fsdp" and job.world > 1:
        report["parallel"] = SHARDED.format(workers=job.world)
    if plan.fits:
        return report
    others = smaller_updates(plan, updates.costs, *updates.rows, updates.parked(counted))
    fitting = next((other for other in others if other.fits), None)
    changes = [change(plan, fitting)] if fitting is not None else remedies(job, rows=1)
    return report | {"to_fit": changes or ["a larger GPU"]}


def checkpoints(updates: Updates, device: torch.device) -> bool:
    """Whether a worker on `device` uses gradient checkpointing: if requested, or if an update fits its GPU only so."""
    job = updates.job
    if job.gradient_checkpointing or device.type != "cuda":
        return job.gradient_checkpointing
    free, total = torch.cuda.mem_get_info(device)
    try:
        return updates.fitting(usable_bytes(total, job.gpus() or 1.0, free)).gradient_checkpointing
    except Exception:  # a model that cannot be counted trains with the job's options
        return False


def out_of_memory(job: TrainJob, error: Exception | None = None) -> str:
    """The message: rows at once, the memory in `error`, and the options that need less memory."""
    used = "" if error is None else f", {said_of_memory(error)}, {memory_used()}"
    return (
        f"GPU memory ran out with {job.rows_at_once} rows at once on each worker (--batch-size {job.batch_size} over "
        f"{job.world} workers in {job.gradient_accumulation_steps} micro-batches){used}; to need less: "
        + ", ".join(remedies(job, job.rows_at_once))
    )


def autocast_of(dtype: str) -> torch.dtype | None:
    """The dtype of autocast for an option's dtype; None: autocast is off."""
    named: torch.dtype = getattr(torch, dtype)
    return None if named == torch.float32 else named


def change(plan: UpdatePlan, fitting: UpdatePlan) -> str:
    """The options to change so that an update fits."""
    options = []
    if fitting.micro_batches != plan.micro_batches:
        options.append(f"--gradient-accumulation-steps {fitting.micro_batches}")
    if fitting.gradient_checkpointing != plan.gradient_checkpointing:
        options.append("--gradient-checkpointing")
    return f"set {' '.join(options)}: {fitting.peak / GIB:.2f} GiB planned"


def adapted(models: TrainModels) -> bool:
    """Whether the teacher is the training network itself, with its adapter off or as it was at the start."""
    held = models.held.fingerprint
    return held in (models.model.fingerprint, models.model.base.fingerprint)
