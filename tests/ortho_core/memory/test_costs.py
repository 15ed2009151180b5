import pytest
import torch

from ortho_core.estep.config import AssignConfig
from ortho_core.estep.objective import Reconstruction
from ortho_core.estep.slots import empty_slots
from ortho_core.estep.space import noise_space
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.memory import costs
from ortho_core.memory.blank import blank_generator
from ortho_core.memory.live import without_numbers
from ortho_core.mstep.config import MStepConfig


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ortho" / "memory"


@pytest.fixture
def model(tiny_turbo):
    return ModelFolder.open(tiny_turbo)


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


def test_checkpointing_and_half_precision_need_less_and_adapters_less_than_all_weights(model):
    config, step = AssignConfig(sensitivity_rank=0), MStepConfig(mixed_precision="bf16")
    plain = costs.search_costs(model, "float32", config)
    assert costs.search_costs(model, "bfloat16", config).evaluation.each < plain.evaluation.each
    assert (
        costs.search_costs(model, "float32", config, gradient_checkpointing=True).evaluation.each
        < plain.evaluation.each
    )
    where = {"gradient_checkpointing": False}
    whole = costs.update_costs(model, step, dtype="float32", lora=None, second_network=True, **where)
    adapter = costs.update_costs(model, step, dtype="bfloat16", lora=Lora(4, 4.0), second_network=False, **where)
    assert adapter.kept < whole.kept / 4
    assert adapter.update(4, 1) - adapter.update(3, 1) == adapter.row
    checkpointed = costs.update_costs(
        model, step, dtype="bfloat16", lora=Lora(4, 4.0), second_network=False, gradient_checkpointing=True
    )
    assert checkpointed.row < adapter.row
