"""What each worker of `ortho reward` does: the pool of `assign`, with rewards to raise in place of images to meet."""

from typing import Any

from ortho_core.estep.config import SearchConfig
from ortho_core.estep.rows import Rows
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.rewards import WeightedSum, load_rewards, parse_rewards
from ortho_core.rewards.objective import RewardObjective
from ortho_core.rewards.rows import PromptRows
from rayjobs.pool.worker import ShardActor


def objective_of(job: Any, generator: OneStepGenerator) -> RewardObjective:
    """The job's rewards around a generator; those that are only told of share what they can with the others."""
    spec = f"{job.reward},{job.report_rewards}" if job.report_rewards else job.reward
    told = load_rewards(spec, job.folders(), generator.device, job.dtype)
    weights = parse_rewards(job.reward)
    return RewardObjective(generator, WeightedSum({name: told.rewards[name] for name in weights}, weights), told)


class RewardActor(ShardActor):
    """One worker of the pool; its rows are prompts."""

    kind = SearchConfig

    @staticmethod
    def objective_of(job: Any, generator: OneStepGenerator) -> RewardObjective:
        return objective_of(job, generator)

    def rows_of(self, job: Any, objective: RewardObjective, prompts: PromptCache, decoder_cpus: float) -> Rows:
        return PromptRows(objective, prompts, self.pairs)
