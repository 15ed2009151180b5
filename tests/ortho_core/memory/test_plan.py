import pytest

from ortho_core.memory.costs import SearchCosts, UpdateCosts, Weights
from ortho_core.memory.live import Linear
from ortho_core.memory.plan import (
    CONTEXT_BYTES,
    GIB,
    MOST_SLOTS,
    plan_search,
    plan_update,
    round_down,
    smaller_updates,
    usable_bytes,
)

COSTS = SearchCosts(
    Weights(5 * GIB, GIB, GIB),
    slots=Linear(0, GIB // 100),
    evaluation=Linear(0, GIB),
    text=Linear(0, 0),
    encode=Linear(0, GIB // 2),
    decode=Linear(0, GIB),
    forward=Linear(0, GIB // 10),
    encode_tile=GIB // 4,
    decode_tile=GIB // 4,
    prompt=1000,
    row=1000,
    image=1000,
)


@pytest.mark.parametrize(
    ("fit", "slots"), [(-3, 1), (1, 1), (5, 4), (7, 6), (13, 12), (23, 16), (31, 24), (1000, MOST_SLOTS)]
)
def test_slot_counts_are_few_and_never_more_than_fit(fit, slots):
    assert round_down(fit) == slots


def test_a_worker_with_a_share_of_a_card_plans_with_that_share_and_with_what_is_free():
    whole = usable_bytes(24 * GIB)
    assert 4 * usable_bytes(24 * GIB, 0.25) < whole < 24 * GIB - CONTEXT_BYTES
    assert usable_bytes(24 * GIB, 1.0, free=10 * GIB) < usable_bytes(24 * GIB, 1.0, free=20 * GIB) < whole


@pytest.mark.parametrize(
    ("gib", "slots", "encoded", "decoded"),
    [(7.5, 1, 0, 0), (9, 1, 1, 1), (12, 4, 8, 1), (17, 8, 8, 8), (200, 64, 8, 8)],
)
def test_slots_and_parts_are_what_fits(gib, slots, encoded, decoded):
    plan = plan_search(COSTS, int(gib * GIB), MOST_SLOTS, 100)
    assert (plan.slots, plan.encoded, plan.decoded) == (slots, encoded, decoded)
    assert plan.fits == (gib > 8)
    assert plan.line().endswith("which does not fit") != plan.fits
    assert plan_search(COSTS, int(gib * GIB), MOST_SLOTS, 100, judges=GIB).slots <= slots


def test_an_update_that_does_not_fit_is_divided_and_then_checkpointed():
    def costs(checkpointing):
        each = GIB // 4 if checkpointing else GIB
        return UpdateCosts(Weights(5 * GIB, GIB, GIB), GIB, ((0, each, each),))

    plan = plan_update(costs(False), 8 * GIB, 4, 4, 1, GIB, False)
    assert plan.peak == 15 * GIB
    assert not plan.fits
    fitting = [other for other in smaller_updates(plan, costs, 4, 4, GIB) if other.fits]
    assert [(one.micro_batches, one.gradient_checkpointing) for one in fitting] == [(2, True), (4, True)]
