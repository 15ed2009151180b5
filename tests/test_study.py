"""The study's arithmetic against the same written out, and the study itself in miniature."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from benchmarks.ablations import VARIANTS, trials
from benchmarks.study.arms import ARMS, CYCLES, Protocol
from benchmarks.study.laboratory import HELDOUT, PAIRS, Laboratory
from benchmarks.study.mismatch import Fitted, laws
from benchmarks.study.rivals import (
    RIVAL_ARMS,
    RivalTraining,
    cheapest,
    pairwise_loss,
    permuted_within,
    without_adapter,
)
from benchmarks.study.style import brightness, ink, slant
from benchmarks.study.tables import Estimate
from models.recipes.leaning import write_pairs
from ortho_core.pairs.pair_set import PairSet
from tests.conftest import ROOT


def test_an_interval_over_seeds_adds_what_rows_and_seeds_leave_open():
    values, halves = [1.0, 2.0, 3.0], [0.3, 0.4, 0.5]
    # The deviation of the three is 1, and 4.303 the quantile of t with two degrees of freedom.
    expected = np.sqrt(np.mean(np.square(halves)) + (4.302653 / np.sqrt(3)) ** 2)
    found = Estimate.over(values, halves)
    assert (found.value, found.half) == (2.0, pytest.approx(expected))
    assert Estimate.over([1.0], [0.3]) == Estimate(1.0, pytest.approx(0.3))
    assert not found.apart_from_zero
    assert Estimate(-0.3, 0.2).apart_from_zero


def test_an_estimate_shows_two_digits_of_what_is_open():
    assert str(Estimate(0.30261, 0.0425)) == "0.303 ± 0.043"
    assert str(Estimate(26.04, 1.31)) == "26.0 ± 1.3"
    assert str(Estimate(132.4, 14.0)) == "132 ± 14"


@pytest.mark.parametrize("name", ARMS)
def test_no_arm_spends_more_evaluations_than_another_and_none_could_train_longer(name):
    arm, protocol = ARMS[name], Protocol()
    matching = {"online": int(arm.train.get("match_steps", 0))}.get(arm.train.get("noise", "matched"), 0)
    preserved = 4 / 3 * arm.train.get("preserve_batch_size", 16) / 16 if arm.train["preserve_latent_weight"] else 0
    epoch = 1 + preserved + matching
    steps = arm.cycles * (protocol.steps if arm.steps is None else arm.steps)
    epochs = max(1, arm.cycles) * arm.epochs(protocol)
    assert steps + epochs * epoch <= 64 < steps + (epochs + max(1, arm.cycles)) * epoch
    assert protocol.equal == CYCLES * ARMS["em"].epochs(protocol) == 48


def test_a_shear_changes_the_slant_and_a_thicker_stroke_the_ink():
    image = np.zeros((32, 32), np.uint8)
    image[6:26, 14:17] = 255
    sheared = np.stack([np.roll(row, round(-0.4 * (y - 16))) for y, row in enumerate(image)])
    thick = np.maximum(image, np.roll(image, 1, 1))
    upright, leaning, bold = (
        torch.from_numpy(each)[None, None].expand(1, 3, 32, 32) for each in (image, sheared, thick)
    )
    assert slant(upright)[0] == pytest.approx(0, abs=0.02)
    assert slant(leaning)[0] == pytest.approx(-0.4, abs=0.1)
    assert ink(leaning)[0] == pytest.approx(ink(upright)[0])
    assert ink(bold)[0] == pytest.approx(4 / 3 * ink(upright)[0])
    assert ink(255 - bold)[0] == pytest.approx(ink(bold)[0])  # dark on light
    assert brightness(bold)[0] == pytest.approx(20 * 4 / 32**2)


def test_a_fitted_gaussian_has_the_mean_and_nearly_the_covariance_of_what_it_was_fitted_to():
    rng = torch.Generator().manual_seed(0)
    mixing = torch.randn(8, 8, generator=rng) / 8**0.5 + torch.eye(8)
    made = torch.randn(4000, 8, generator=rng) @ mixing + torch.linspace(-1, 1, 8)
    fitted = Fitted.to(made.view(4000, 2, 2, 2))
    drawn = fitted.drawn(torch.randn(4000, 2, 2, 2, generator=rng)).flatten(1)
    torch.testing.assert_close(fitted.mean, made.mean(0).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(drawn.mean(0), made.mean(0), rtol=0, atol=0.1)
    torch.testing.assert_close(drawn.T.cov(), made.T.cov(), rtol=0.1, atol=0.2)


def test_few_maps_of_white_noise_are_fitted_by_white_noise():
    noise = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    covariance = Fitted.to(noise).root @ Fitted.to(noise).root.T
    # The sample covariance of 64 maps has rank 63: its largest of 256 eigenvalues is about (1 + √(256/64))² = 9.
    assert torch.linalg.eigvalsh(covariance).max() < 1.5
    assert torch.linalg.eigvalsh(covariance).min() > 0.5


def test_the_laws_of_noise_differ_as_they_say():
    rng = torch.Generator().manual_seed(0)
    plain, assigned = torch.randn(16, 1, 2, 2, generator=rng), torch.randn(8, 1, 2, 2, generator=rng) + 3
    found = laws(plain, assigned, 0)
    assert torch.equal(found["N(0, I)"], plain)
    torch.testing.assert_close(found["fitted mean"] - plain, assigned.mean(0).expand_as(plain), rtol=0, atol=1e-5)
    rows = {tuple(row.tolist()) for row in assigned.flatten(1)}
    assert {tuple(row.tolist()) for row in found["the assigned noise itself"].flatten(1)} <= rows


def test_seeds_and_the_judge_have_pairs_of_their_own(tmp_path):
    lab = Laboratory("mnist", ROOT / "examples" / "mnist", tmp_path)
    sets = {name: pictures(lab._targets(name, *where)) for name, where in places().items()}
    assert [len(found) for found in sets.values()] == [40, 20, 20]
    assert not sets["heldout"] & sets["pairs-0"]
    assert not sets["pairs-0"] & sets["pairs-1"]


def places():
    """As `heldout` and `pairs` ask, scaled down to the images that ship."""
    return {"heldout": (0, 40), "pairs-0": (40, 20), "pairs-1": (60, 20)}


def pictures(file):
    source = PairSet(str(file))
    rows = [row for shard in source.shards(64) for row in source.read(shard)]
    return {source.fetch(row) for row in rows}


def test_an_ablation_varies_one_thing():
    for variant in list(VARIANTS.values())[1:]:
        changed = [name for name in variant.train if name != "noise"]
        assert len(changed) <= 1
        assert bool(variant.assign) + bool(changed) + (variant.warm is not None) <= 1
    keys = [trial.key for trial in trials(Laboratory("mnist", ROOT, ROOT), 0)]
    assert len(set(keys)) == len(VARIANTS)
    assert HELDOUT + 3 * PAIRS <= 10_000  # the test images that there are


def test_a_rival_exchanges_noise_within_a_prompt_where_that_brings_outputs_nearest():
    rng = torch.Generator().manual_seed(0)
    outputs, targets = (torch.randn(5, 1, 2, 2, generator=rng) for _ in range(2))
    cost = torch.cdist(targets.flatten(1), outputs.flatten(1)).square()
    sums = {order: sum(cost[i, j] for i, j in enumerate(order)) for order in itertools.permutations(range(5))}
    assert tuple(cheapest(cost).tolist()) == min(sums, key=sums.get)
    inside = {order: total for order, total in sums.items() if {order[i] for i in (0, 2, 4)} == {0, 2, 4}}
    found = permuted_within(["a", "b", "a", "b", "a"], outputs, targets)
    assert tuple(found.tolist()) == min(inside, key=inside.get)


def test_the_pairwise_loss_falls_where_a_target_becomes_likelier_than_a_sample():
    before = torch.tensor([1.0, 2.0, 0.5, 0.5])  # errors of two targets, then of two samples
    same = pairwise_loss(before, before, 10)
    assert float(same) == pytest.approx(np.log(2))
    closer, further = (pairwise_loss(before + torch.tensor([change, 0, 0, 0]), before, 10) for change in (-0.1, 0.1))
    assert closer < same < further
    assert pairwise_loss(before + torch.tensor([0, 0, 0, 0.1]), before, 10) < same


def test_an_adapter_that_is_taken_off_leaves_what_was_learned_with_it_on():
    before, adapter, learned = ({"w": torch.randn(3, 3)} for _ in range(3))
    adapted = {"w": before["w"] + adapter["w"]}
    tuned = {"w": adapted["w"] + learned["w"]}
    torch.testing.assert_close(without_adapter(tuned, adapted, before)["w"], before["w"] + learned["w"])


@pytest.mark.parametrize("name", list(RIVAL_ARMS))
def test_a_rival_spends_the_evaluations_that_every_arm_has(name, tiny_turbo, tmp_path):
    prompts = ["a red handwritten two on a black background"] * 4 + [
        "a green handwritten six on a white background"
    ] * 4
    write_pairs(
        np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), np.uint8), prompts, tmp_path / "pairs.parquet"
    )
    protocol = Protocol(evaluations=8, batch_size=4)
    training = RivalTraining(tiny_turbo, tmp_path / "pairs.parquet", protocol.train(0), protocol.evaluations)
    before = {name: weight.clone() for name, weight in training.network.state_dict().items()}
    RIVAL_ARMS[name].teach(training, lambda epoch: None)
    spent = training.spent / len(training.targets)
    assert protocol.evaluations - RIVAL_ARMS[name].each < spent <= protocol.evaluations + 1e-6
    after = training.network.state_dict()
    assert before.keys() == after.keys()
    assert all(weight.isfinite().all() for weight in after.values())
    assert any((after[name] != before[name]).any() for name in before)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_study_runs_on_the_images_that_ship(tmp_path):
    argv = [
        "--data",
        "mnist",
        "--root",
        "examples/mnist",
        "--work",
        str(tmp_path),
        "--seeds",
        "0",
        "--evaluations",
        "24",
    ]
    for extra in ([], ["--tables", str(tmp_path / "shown")]):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.matched_vs_direct", *argv, "--arms", "direct", "em", *extra],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    assert f"| {ARMS['em'].title} |" in done.stdout
    assert (tmp_path / "shown" / "study-mnist.png").stat().st_size > 10_000
    metrics = json.loads((tmp_path / "mnist" / "seed-0" / "em" / "evaluation" / "evaluation.json").read_text())[
        "metrics"
    ]
    assert metrics["em"]["latent_mse"]["high"] < metrics["base"]["latent_mse"]["low"]
