"""The memory that a dry run plans for a search for rewards. The machine does not need the planned GPU.

The rewards' models are loaded on the CPU, so the plan has their real size, and the search is counted with their own code.
"""

from collections.abc import Mapping

from torch import nn

from ortho_core.generators.model_folder import ModelFolder
from ortho_core.memory.blank import bytes_of
from ortho_core.memory.plan import MOST_SLOTS
from ortho_core.rewards.clip import ClipTower
from ortho_core.rewards.combined import WeightedSum
from ortho_core.rewards.names import parse_rewards
from ortho_core.rewards.objective import RewardObjective
from rayjobs.pool.engine_search import REWARDS
from rayjobs.pool.memory import Searched, described, smaller
from rayjobs.reward.config import RewardJob
from rayjobs.reward.worker import rewards_of


def memory_of(
    job: RewardJob, model: ModelFolder, fingerprints: Mapping[str, str], rows: int, rows_per_shard: int
) -> dict[str, object]:
    """The plan for a GPU of `job.gpu_memory` GiB and `rows` prompts; `fingerprints` are those of the rewards' weights."""
    assert job.gpu_memory is not None
    share = None if job.prompt is not None else job.gpus_per_worker  # one prompt has the whole GPU
    here = searched(job, model, fingerprints, rows, rows_per_shard)
    report = described(here, share, job.gpu_memory, {})
    if report["fits"]:  # only a plan that does not fit needs the changes, which load the rewards again
        return report
    return described(here, share, job.gpu_memory, changes(job, here, model, fingerprints))


def searched(
    job: RewardJob, model: ModelFolder, fingerprints: Mapping[str, str], rows: int, rows_per_shard: int
) -> Searched:
    """What decides the memory of the job's search. Raises UserError for rewards that do not load."""
    optimised, reported = rewards_of(job, "cpu")
    decides = {"reward_fingerprints": dict(fingerprints), "rewards": parse_rewards(job.reward)}
    assert decides.keys() == REWARDS
    return Searched(
        model,
        job.dtype,
        # As in `run_one`: for one prompt, measuring the generator would take more evaluations than the search.
        job if job.prompt is None else job.model_copy(update={"sensitivity_rank": 0}),
        min(job.slots or MOST_SLOTS, rows_per_shard),
        rows,
        job.gradient_checkpointing,
        lambda blank: RewardObjective(blank, optimised, reported),
        {"asked": job.dtype, **decides},
        judges=sum(map(bytes_of, models_of(reported))),
        quantize=job.quantize,
    )


def models_of(rewards: WeightedSum) -> list[nn.Module]:
    """The networks of the rewards, each once: several rewards may share one."""
    parts = [part for reward in rewards.rewards.values() for part in vars(reward).values()]
    networks = [part.model if isinstance(part, ClipTower) else part for part in parts]
    return list({id(network): network for network in networks if isinstance(network, nn.Module)}.values())


def changes(job: RewardJob, here: Searched, model: ModelFolder, fingerprints: Mapping[str, str]) -> dict[str, Searched]:
    """Changes of options that need less memory, each with the search after the change."""
    smaller_searches: dict[str, Searched] = {}
    if job.dtype in ("auto", "float32"):  # "auto" leaves the rewards in float32
        half = model.half or "float16"
        halved = job.model_copy(update={"dtype": half})
        smaller_searches[f"set --dtype {half}"] = searched(halved, model, fingerprints, here.rows, here.most)
    return smaller_searches | smaller(here)
