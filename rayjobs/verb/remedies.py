"""Which options of a job need less memory, of those that do not do so yet."""

from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel

#: What an option can do for the memory of a GPU, and of the process: its name, whether it is still open in this job (given the
#: rows that are computed at once, 0 where that is not known), and what to do with it. The first needs the least of a user.
_OPEN: tuple[tuple[str, Callable[[Any, int], bool], str], ...] = (
    # `reward` of one prompt has one row.
    ("slots", lambda job, rows: rows != 1 and getattr(job, "prompts", "") is not None, "lower --slots"),
    ("batch_size", lambda job, rows: rows != 1 and not hasattr(job, "rows_at_once"), "lower --batch-size"),
    (
        "gradient_accumulation_steps",
        lambda job, rows: getattr(job, "rows_at_once", 0) > 1,
        "raise --gradient-accumulation-steps",
    ),
    ("gradient_checkpointing", lambda job, rows: not job.gradient_checkpointing, "set --gradient-checkpointing"),
    ("mixed_precision", lambda job, rows: job.mixed_precision == "no", "set --mixed-precision fp16"),
    ("dtype", lambda job, rows: job.dtype == "float32", "set --dtype float16"),
    ("quantize", lambda job, rows: job.quantize == "none" and getattr(job, "lora_rank", 1) > 0, "set --quantize int8"),
    (
        "match_dtype",
        lambda job, rows: job.noise == "online" and job.match_dtype == "float32",
        "set --match-dtype float16",
    ),
    ("pixel_l1_weight", lambda job, rows: job.pixel_l1_weight > 0, "leave the images out (--pixel-l1-weight 0)"),
    ("lora_rank", lambda job, rows: not job.lora_rank, "train an adapter (--lora-rank 16)"),
    (
        "lora_rank",
        lambda job, rows: job.optimizer != "adafactor" and not job.lora_rank,
        "set --optimizer adafactor",
    ),
    (
        "preserve_latent_weight",
        lambda job, rows: job.preserves,
        "hold it to nothing (--preserve-latent-weight 0)",
    ),
    (
        "parallel",
        lambda job, rows: job.parallel != "fsdp",
        "shard over several GPUs (--parallel fsdp --num-workers N)",
    ),
    ("report_rewards", lambda job, rows: bool(job.report_rewards), "report fewer rewards (--report-rewards)"),
    ("reward", lambda job, rows: "," in job.reward or job.reward == "hybrid", "raise fewer rewards (--reward)"),
    ("lpips", lambda job, rows: job.lpips is not None, "leave --lpips out"),
    ("rewards", lambda job, rows: job.rewards is not None, "judge without rewards (--rewards none)"),
    ("num_samples", lambda job, rows: True, "lower --num-samples"),
    ("size", lambda job, rows: True, "lower --size"),
    ("widths", lambda job, rows: True, "make the network narrower (--widths)"),
    (
        "gpus_per_worker",
        lambda job, rows: 0 < (job.gpus_per_worker or 0) < 1,
        "give a worker more of a GPU (--gpus-per-worker 1)",
    ),
    ("device", lambda job, rows: job.device != "cpu", "compute on the CPU (--device cpu)"),
)
#: The same for the memory of a whole machine, which all of its processes share.
_OPEN_ON_HOST: tuple[tuple[str, Callable[[Any, int], bool], str], ...] = (
    ("workers", lambda job, rows: job.pool_size[1] > 1, "start fewer --workers"),
    ("num_workers", lambda job, rows: job.num_workers > 1, "start fewer --num-workers"),
    ("cpus_per_worker", lambda job, rows: True, "put fewer workers on a machine (more --cpus-per-worker)"),
    ("shuffle_window", lambda job, rows: True, "lower --shuffle-window"),
)


def remedies(job: object, rows: int = 0, host: bool = False) -> list[str]:
    """What to do with options of the job, `host` where the machine's memory ran out and not a GPU's.

    `rows` are computed at once, at 1 there is nothing to halve. Of a job that holds those of its steps, what each step has.
    """
    if not isinstance(job, BaseModel):
        return []
    fields = type(job).model_fields
    found = [said for name, is_open, said in _OPEN_ON_HOST if host and name in fields and is_open(job, rows)]
    found += [said for name, is_open, said in _OPEN if name in fields and is_open(job, rows)]
    return found + list(_of_steps(job, rows, host))


def _of_steps(job: BaseModel, rows: int, host: bool) -> Iterator[str]:
    for name in type(job).model_fields:
        if isinstance(step := getattr(job, name), BaseModel):
            yield from (said.replace("--", f"--{name}.") for said in remedies(step, rows, host))
