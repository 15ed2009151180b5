"""Rewards: the protocol, the models behind each name, and weighted sums of them."""

from ortho_core.rewards.base import Reward
from ortho_core.rewards.combined import WeightedSum, load_rewards
from ortho_core.rewards.kinds import accepted_names
from ortho_core.rewards.names import parse_rewards, reward_fingerprints

__all__ = ["Reward", "WeightedSum", "accepted_names", "load_rewards", "parse_rewards", "reward_fingerprints"]
