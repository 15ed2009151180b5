"""What each worker of `ortho reward` searches for: the noise whose image has the highest reward."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.pairs.pair_set import PairSet
from ortho_core.records.plan import RewardPlan
from ortho_core.rewards.combined import WeightedSum, load_rewards
from ortho_core.rewards.names import parse_rewards, reward_fingerprints
from ortho_core.rewards.objective import RewardObjective
from ortho_core.rewards.rows import PromptRows
from ortho_core.storage.planned import as_planned
from rayjobs.pool.engine_search import EngineSearch
from rayjobs.pool.protocol import Decoder
from rayjobs.reward.config import RewardJob


def objective_of(
    job: RewardJob, generator: OneStepGenerator, fingerprints: Mapping[str, str] | None = None
) -> RewardObjective:
    """The job's rewards with a generator. Rewards that are only reported share networks with the others."""
    return RewardObjective(generator, *rewards_of(job, generator.device, fingerprints))


def rewards_of(
    job: RewardJob, device: str | torch.device, fingerprints: Mapping[str, str] | None = None
) -> tuple[WeightedSum, WeightedSum]:
    """Load the rewards: those that are optimised, and all that are reported. Raises UserError.

    `fingerprints` are those of the plan, by reward; the weights must still have them.
    """
    spec = f"{job.reward},{job.report_rewards}" if job.report_rewards else job.reward
    # "auto" is float32 here: rounded scores would save little, since the rewards are small beside the generator.
    dtype = "float32" if job.dtype == "auto" else job.dtype
    planned = {} if fingerprints is None else of_rewards(fingerprints)
    with as_planned(planned, lambda: of_rewards(reward_fingerprints(fingerprints or (), job.folders()))):
        reported = load_rewards(spec, job.folders(), device, dtype)
    weights = parse_rewards(job.reward)
    return WeightedSum({name: reported.rewards[name] for name in weights}, weights), reported


def of_rewards(fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Fingerprints of rewards' weights, by the names that messages use."""
    return {f"reward {name}": value for name, value in fingerprints.items()}


@dataclass(frozen=True)
class Rewarding:
    """The goal of `ortho reward`; its rows are prompts."""

    config: RewardJob
    #: Fingerprints of the rewards' weights in the plan.
    fingerprints: Mapping[str, str]

    def rows(self, generator: OneStepGenerator, pairs: PairSet, decoder: Decoder) -> PromptRows:
        return PromptRows(objective_of(self.config, generator, self.fingerprints), PromptCache(generator), pairs)


def search_of(job: RewardJob, model: ModelFolder, plan: RewardPlan, rows: PairSet) -> EngineSearch:
    """The work of the job, as the pool's workers load it."""
    return EngineSearch(job, model, Rewarding(job, plan.reward_fingerprints), plan, rows)
