"""Prompts as the rows of a shard: raised alone or together, and quarantined where a reward is no number."""

import pytest
import torch

from ortho_core.estep.config import SearchConfig
from ortho_core.estep.engines import Engines
from ortho_core.estep.shard_assigner import RecordConfig, ShardAssigner
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import PromptFields
from ortho_core.rewards.base import Scoring
from ortho_core.rewards.combined import WeightedSum
from ortho_core.rewards.objective import RewardObjective
from ortho_core.rewards.rows import PromptRows

PROMPTS = ["a red handwritten two on a white background", "a handwritten nine", "a blue handwritten one"]


class Redness(Scoring):
    """How red an image is; not a number where the prompt asks for a nine."""

    name = "red"

    def encode_prompts(self, prompts):
        return {"nine": torch.tensor([float("nan") if "nine" in prompt else 0.0 for prompt in prompts])}

    def score_encoded(self, images, encoded):
        return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3)) + encoded["nine"]


def assigned(generator, folder, prompts):
    file = folder / "prompts.txt"
    file.write_text("\n".join(prompts))
    rows = PairSet(file, PromptFields())
    objective = RewardObjective(generator, WeightedSum({"red": Redness()}, {"red": 2.0}))
    engines = Engines(generator, SearchConfig(patch_size=2, steps=4, sensitivity_rank=0), 2, objective)
    of_prompts = PromptRows(objective, PromptCache(generator), rows)
    (shard,) = rows.shards(8)
    return ShardAssigner(engines, of_prompts, RecordConfig(0, "parameters", "m", "c")).assign(shard)


def test_a_reward_that_is_no_number_quarantines_its_row_alone(generator, tmp_path):
    result = assigned(generator, tmp_path, PROMPTS)
    assert [row["prompt"] for row in result.rows] == [PROMPTS[0], PROMPTS[2]]
    (failure,) = result.failures
    assert (failure.row, failure.reason) == (1, "non-finite-loss")
    assert "red nan" in failure.message
    for row in result.rows:
        before, after = dict(row["initial_rewards"])["red"], dict(row["rewards"])["red"]
        assert after > before
        assert row["loss"] == pytest.approx(-2 * after, abs=0.05)  # the record's is of the picture, clamped


def test_a_prompt_is_raised_alike_in_any_company(generator, tmp_path):
    (alone,) = assigned(generator, tmp_path, PROMPTS[:1]).rows
    together = assigned(generator, tmp_path, [PROMPTS[0], PROMPTS[2]]).rows[0]
    assert (alone["skew"] == together["skew"]).all()
    assert alone["rewards"] == together["rewards"]
