"""Which rows a report of assignments shows."""

import pytest

from ortho_core.records.sampled import SampledRecord
from rayjobs.assign.chosen import BEST, DRAWN, HARDEST, WORST, choose


def record(row, loss, initial=2.0, prompt=""):
    return SampledRecord("part", row, f"{row:06d}", prompt or f"prompt {row}", f"{row}.png", initial, loss, 4)


def test_the_best_and_the_worst_come_in_order_and_share_no_row():
    records = [record(row, (37 * row % 50) / 50) for row in range(50)]
    chosen = choose(records, seed=0)
    losses = sorted(r.loss for r in records)
    assert [r.loss for r in chosen.best] == losses[:BEST]
    assert [r.loss for r in chosen.worst] == losses[::-1][:WORST]
    assert len(chosen.every()) <= BEST + WORST + DRAWN + HARDEST
    few = choose(records[:3], seed=0)
    assert [len(rows) for rows in (few.best, few.worst, few.drawn)] == [2, 1, 3]
    assert choose(records[:1], seed=0).worst == []


def test_the_sample_depends_on_the_seed_alone():
    records = [record(row, row / 50) for row in range(50)]
    turned = [record(row, 1 - row / 50) for row in range(50)]
    rows = [[r.row for r in choose(these, seed).drawn] for these, seed in ((records, 1), (turned, 1), (records, 2))]
    assert rows[0] == rows[1] != rows[2]
    assert rows[0] == sorted(rows[0])


def test_prompts_that_repeat_are_ranked_by_their_mean_loss():
    records = [record(row, row / 60, prompt=f"p{row % 10}") for row in range(30)]
    records.append(record(99, 9.0, prompt="once"))
    chosen = choose(records, seed=0)
    means = {f"p{k}": (k + (k + 10) + (k + 20)) / 180 for k in range(10)}
    assert {p.prompt: p.after for p in chosen.prompts} == pytest.approx(
        {f"p{k}": means[f"p{k}"] for k in range(9, 3, -1)}
    )
    assert [p.prompt for p in chosen.prompts] == [f"p{k}" for k in range(9, 3, -1)]
    assert [r.row for r in chosen.hardest] == [10 + k for k in range(9, 3, -1)]  # the middle one of each


def test_without_prompts_that_repeat_the_hardest_rows_are_those_whose_loss_fell_least():
    records = [record(row, 0.5, initial=0.5 + row / 10) for row in range(20)]
    chosen = choose(records[::-1], seed=0)
    assert chosen.prompts == []
    assert [r.row for r in chosen.hardest] == list(range(HARDEST))
