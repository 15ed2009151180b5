"""Option changes that reduce the memory of a job; those that the job has already are left out."""

from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel

#: Option changes that reduce the memory of a GPU and of the process: the option's field, whether this job can still change it
#: (given the batch size in rows, 0 if unknown), and the text for the user. The easiest changes are first.
_OPEN: tuple[tuple[str, Callable[[Any, int], bool], str], ...] = (
    # `ortho reward --prompt` has only one row.
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
        "train without the preserve term (--preserve-latent-weight 0)",
    ),
    (
        "parallel",
        lambda job, rows: job.parallel != "fsdp",
        "shard over several GPUs (--parallel fsdp --num-workers N)",
    ),
    ("report_rewards", lambda job, rows: bool(job.report_rewards), "report fewer rewards (--report-rewards)"),
    ("reward", lambda job, rows: "," in job.reward or job.reward == "hybrid", "optimise fewer rewards (--reward)"),
    ("lpips", lambda job, rows: job.lpips is not None, "leave --lpips out"),
    ("rewards", lambda job, rows: job.rewards is not None, "evaluate without rewards (--rewards none)"),
    ("num_samples", lambda job, rows: True, "lower --num-samples"),
    ("size", lambda job, rows: job.size is not None, "lower --size"),
    ("widths", lambda job, rows: True, "make the network narrower (--widths)"),
    (
        "gpus_per_worker",
        lambda job, rows: 0 < (job.gpus_per_worker or 0) < 1,
        "give a worker more of a GPU (--gpus-per-worker 1)",
    ),
    ("device", lambda job, rows: job.device != "cpu", "compute on the CPU (--device cpu)"),
)
#: The same for the memory of a machine, which all of its processes share.
_OPEN_ON_HOST: tuple[tuple[str, Callable[[Any, int], bool], str], ...] = (
    ("workers", lambda job, rows: job.pool_size[1] > 1, "start fewer --workers"),
    ("num_workers", lambda job, rows: job.num_workers > 1, "start fewer --num-workers"),
    ("cpus_per_worker", lambda job, rows: True, "put fewer workers on a machine (more --cpus-per-worker)"),
    ("shuffle_window", lambda job, rows: True, "lower --shuffle-window"),
)


def remedies(job: object, rows: int = 0, host: bool = False) -> list[str]:
    """Option changes of the job, as text. `host`: the machine's memory ran out, not a GPU's.

    `rows` is the batch size; a batch of 1 cannot be halved. A job with nested jobs (its steps) includes their options.
    """
    if not isinstance(job, BaseModel):
        return []
    fields = type(job).model_fields
    changes = [text for name, is_open, text in _OPEN_ON_HOST if host and name in fields and is_open(job, rows)]
    changes += [text for name, is_open, text in _OPEN if name in fields and is_open(job, rows)]
    return changes + list(_of_steps(job, rows, host))


def _of_steps(job: BaseModel, rows: int, host: bool) -> Iterator[str]:
    for name in type(job).model_fields:
        if isinstance(step := getattr(job, name), BaseModel):
            yield from (text.replace("--", f"--{name}.") for text in remedies(step, rows, host))
