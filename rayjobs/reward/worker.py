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
    """The job's rewards around a generator; those that are only reported share what they can with the others."""
    return RewardObjective(generator, *rewards_of(job, generator.device, fingerprints))


def rewards_of(
    job: RewardJob, device: str | torch.device, fingerprints: Mapping[str, str] | None = None
) -> tuple[WeightedSum, WeightedSum]:
    """Those that are optimised, and all that are reported, loaded. Raises UserError.

    `fingerprints` are those that the run was planned with, by reward; weights must still have them.
    """
    spec = f"{job.reward},{job.report_rewards}" if job.report_rewards else job.reward
    # A score is not worth rounding where nobody asked for it: the models are small beside the generator.
    dtype = "float32" if job.dtype == "auto" else job.dtype
    planned = {} if fingerprints is None else of_rewards(fingerprints)
    with as_planned(planned, lambda: of_rewards(reward_fingerprints(fingerprints or (), job.folders()))):
        told = load_rewards(spec, job.folders(), device, dtype)
    weights = parse_rewards(job.reward)
    return WeightedSum({name: told.rewards[name] for name in weights}, weights), told


def of_rewards(fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Fingerprints of rewards' weights, by what messages call these."""
    return {f"reward {name}": value for name, value in fingerprints.items()}


@dataclass(frozen=True)
class Rewarding:
    """The goal of `ortho reward`; its rows are prompts."""

    config: RewardJob
    #: Of the rewards' weights, as they were planned with.
    fingerprints: Mapping[str, str]

    def rows(self, generator: OneStepGenerator, pairs: PairSet, decoder: Decoder) -> PromptRows:
        return PromptRows(objective_of(self.config, generator, self.fingerprints), PromptCache(generator), pairs)


def search_of(job: RewardJob, model: ModelFolder, plan: RewardPlan, rows: PairSet) -> EngineSearch:
    """What a worker of the job does."""
    return EngineSearch(job, model, Rewarding(job, plan.reward_fingerprints), plan, rows)
