from ortho_core.mstep.loss_scale import FIRST_SCALE, PATIENCE, LossScale


def test_a_gradient_that_does_not_pass_through_float16_is_neither_scaled_nor_made_again():
    scale = LossScale(False)
    assert (scale.value, scale.retries(False), scale.retries(True), scale.value) == (1.0, False, False, 1.0)


def test_the_factor_halves_until_it_is_not_at_fault_and_doubles_when_all_went_well():
    scale = LossScale(True)
    assert scale.retries(False)
    assert scale.value == FIRST_SCALE / 2
    for _ in range(PATIENCE):
        assert not scale.retries(True)
    assert scale.value == FIRST_SCALE
    halved = 0
    while scale.retries(False):
        halved += 1
    assert (2.0**halved, scale.value) == (FIRST_SCALE, FIRST_SCALE)


def test_a_run_that_goes_on_in_another_precision_begins_anew():
    before = LossScale(True)
    before.retries(False)
    same, other, back = LossScale(True), LossScale(False), LossScale(True)
    same.load_state_dict(before.state_dict())
    other.load_state_dict(before.state_dict())
    back.load_state_dict(other.state_dict())
    assert (same.value, other.value, back.value) == (FIRST_SCALE / 2, 1.0, FIRST_SCALE)
