import pytest
import torch

from benchmarks.memory_real import updated
from ortho_core.estep.config import AssignConfig
from ortho_core.estep.objective import Reconstruction
from ortho_core.estep.slots import empty_slots
from ortho_core.estep.space import noise_space
from ortho_core.generators.lora_config import Lora
from ortho_core.memory import costs
from ortho_core.memory.blank import blank_generator
from ortho_core.memory.live import without_numbers
from ortho_core.mstep.config import MStepConfig
from tests.ortho_core.memory.conftest import WITHIN


@pytest.mark.parametrize("pixel", [0.0, 1.0])
def test_what_few_rows_cost_tells_what_many_do(model, generator, pixel):
    config = AssignConfig(sensitivity_rank=0, pixel_l1_weight=pixel)
    counted = costs.search_costs(model, "float32", config)
    parts = [*generator.trainable.parameters(), *generator.trainable.buffers()]
    assert counted.weights.network == sum(p.nbytes for p in parts)
    with without_numbers() as live:
        blank = blank_generator(model, torch.float32)
        objective = Reconstruction(blank, config)
        inputs = objective.blank_inputs(12)
        base = blank.base_noise([0] * 12)
        slots = empty_slots(noise_space(config, blank.latent_shape), objective, config, None, base, inputs)
        assert live.peak_of(slots.step) == pytest.approx(counted.evaluation(12), rel=0.05)
        with torch.no_grad():
            latents = torch.zeros(12, *blank.latent_shape)
            assert live.peak_of(lambda: blank.decode(latents)) == pytest.approx(counted.decode(12), rel=0.05)


def test_a_count_is_kept_by_what_decides_it(model, cache, monkeypatch):
    first = costs.search_costs(model, "float32", AssignConfig(steps=2))
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(costs, "without_numbers", None)  # nothing is counted any more
    assert costs.search_costs(model, "float32", AssignConfig(steps=2)) == first
    with pytest.raises(TypeError):
        costs.search_costs(model, "bfloat16", AssignConfig(steps=2))


def test_a_search_in_half_precision_needs_less(model):
    config = AssignConfig(sensitivity_rank=0)
    plain, half = (costs.search_costs(model, dtype, config) for dtype in ("float32", "bfloat16"))
    assert half.evaluation.each < plain.evaluation.each


@pytest.mark.slow
def test_checkpointing_needs_less_and_adapters_less_than_all_weights(model):
    config, step = AssignConfig(sensitivity_rank=0), MStepConfig(mixed_precision="bf16")
    plain, checkpointed = (
        costs.search_costs(model, "float32", config, gradient_checkpointing=recomputed) for recomputed in (False, True)
    )
    assert checkpointed.evaluation.each < plain.evaluation.each
    where = {"gradient_checkpointing": False}
    whole = costs.update_costs(model, step, dtype="float32", lora=None, second_network=True, **where)
    adapter = costs.update_costs(model, step, dtype="bfloat16", lora=Lora(4, 4.0), second_network=False, **where)
    assert adapter.kept < whole.kept / 4
    checkpointed = costs.update_costs(
        model, step, dtype="bfloat16", lora=Lora(4, 4.0), second_network=False, gradient_checkpointing=True
    )
    assert checkpointed.update(8, 1) < adapter.update(8, 1)


@pytest.mark.parametrize(
    ("lora", "precision", "online"),
    [
        (None, "no", False),
        pytest.param(None, "bf16", True, marks=pytest.mark.slow),
        pytest.param(Lora(4, 4.0), "bf16", False, marks=pytest.mark.slow),
        pytest.param(Lora(4, 4.0), "no", True, marks=pytest.mark.slow),
    ],
    ids=["all-weights", "all-weights-online", "adapter", "adapter-online"],
)
def test_an_update_with_preserve_rows_takes_what_was_planned(model, lora, precision, online):
    update = updated(model, 8, 4, MStepConfig(mixed_precision=precision), lora, online)
    assert update.ratio == pytest.approx(1, abs=WITHIN), update


@pytest.mark.parametrize(
    ("rows", "config"),
    [
        # Gradients decide what two rows take, activations what sixteen do.
        pytest.param(2, MStepConfig(), marks=pytest.mark.slow),
        pytest.param(16, MStepConfig(preserve_differences=True), marks=pytest.mark.slow),
        pytest.param(4, MStepConfig(pixel_l1_weight=1.0, preserve_pixel_weight=1.0), marks=pytest.mark.slow),
        (4, MStepConfig(optimizer="adafactor", ema=True)),
    ],
    ids=["few-rows", "many-rows", "pixels", "adafactor"],
)
def test_updates_of_other_kinds_take_what_was_planned(model, rows, config):
    update = updated(model, rows, 2, config, None)
    assert update.ratio == pytest.approx(1, abs=WITHIN), update
