"""What a worker makes of a row."""

import numpy as np
import pytest
import torch

from ortho_core.estep.config import AssignConfig
from ortho_core.estep.engines import Engines
from ortho_core.estep.objective import Reconstruction
from ortho_core.estep.shard_assigner import RecordConfig, ShardAssigner
from ortho_core.evaluation.rows import EvaluationRows
from ortho_core.evaluation.samples import from_png, mean_pairwise_distance, sample
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.noise.seeded import noise_seed
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pictures import to_bytes
from tests.ortho_core.evaluation.judges import TEXTS, judges


def test_records_of_a_row_are_what_its_own_images_give(generator, digits):
    """The records of seven rows, against the images that they keep; in other company they are the same."""
    pairs = PairSet(digits / "heldout.jsonl")
    judge, config = judges(), AssignConfig(steps=3, patience=0)

    def records(count):
        objective = Reconstruction(generator, config)
        rows = EvaluationRows(objective, PromptCache(generator), pairs, judge, seed=0, is_base=True)
        engines = Engines(generator, config, 4, objective)
        assigner = ShardAssigner(engines, rows, RecordConfig(0, "parameters", "a", "b"))
        return assigner.assign(pairs.shards(count)[0]).rows, rows

    (found, rows), (fewer, _) = records(7), records(3)
    for row, again in zip(found, fewer, strict=False):
        assert row["latent_mse"] == pytest.approx(again["latent_mse"], rel=1e-4)
        assert row["sample"] == again["sample"]
    shard = pairs.shards(7)[0]
    targets = torch.from_numpy(np.stack(pairs.images(list(pairs.read(shard)), generator.image_size))).permute(
        0, 3, 1, 2
    )
    kept = {
        name: torch.stack([from_png(row[name]) for row in found]) for name in ("target", "closest", "sample", "other")
    }
    assert torch.equal(kept["target"], targets)
    error = ((kept["closest"].double() - targets.double()) / 255).square().flatten(1).mean(1)
    assert [row["psnr"] for row in found] == pytest.approx((-10 * error.log10()).tolist(), abs=1e-3)
    prompts = [row["prompt"] for row in found]
    seen = judge.look(kept["sample"].float() / 255, prompts)
    assert [dict(row["rewards"])["clip"] for row in found] == pytest.approx(seen.rewards["clip"].tolist(), abs=1e-5)
    assert np.stack([row["features"] for row in found]) == pytest.approx(seen.features["features"].numpy(), abs=1e-3)
    for name, key in (("sample", ["evaluate"]), ("other", ["evaluate", "other"])):
        seeds = [noise_seed(0, *key, row["sample_id"]) for row in found]
        alone = sample(generator, PromptCache(generator), prompts, seeds, 1)
        assert (alone.int() - kept[name].int()).abs().max() <= 1, name
    others = judge.look(kept["other"].float() / 255, prompts).features["features"].numpy()
    assert np.stack([row["other_features"] for row in found]) == pytest.approx(others, abs=1e-3)
    assert not np.allclose(found[0]["other_features"], found[0]["features"])
    (spread,) = rows.spread([TEXTS[0]])
    seeds = [noise_seed(0, "diversity", i) for i in range(8)]
    images = sample(generator, PromptCache(generator), TEXTS[:1] * 8, seeds, 8)
    assert spread == pytest.approx(mean_pairwise_distance(images), rel=1e-3)
    assert torch.equal(to_bytes(targets.float() / 255), targets)
