"""What a worker does to fit its GPU, by what is planned of it: the first way that fits, and no more than that."""

from dataclasses import replace

import pytest

from ortho_core.estep.config import AssignConfig
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from rayjobs.pool.memory import Searched, described, smaller, spare

HUGE = 1 << 40
WAYS = [(False, False), (False, True), (True, False), (True, True)]


@pytest.fixture(scope="module")
def searched(tiny_turbo, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    # Slots large enough to matter beside the weights of so small a model.
    yield Searched(ModelFolder.open(tiny_turbo), "float32", AssignConfig(pixel_l1_weight=0.1), 1, 8)
    patch.undo()


@pytest.fixture(scope="module")
def plans(searched):
    """The peak of one slot by way: whether activations are computed twice, and text encoders parked."""
    return {
        (twice, parked): replace(searched, gradient_checkpointing=twice, parked=parked).plan(HUGE)
        for twice, parked in WAYS
    }


def test_each_way_needs_less_than_the_one_before(plans):
    peaks = [plans[way].peak for way in WAYS]
    # With both, what decides is that text is encoded at all, and the encoders have to be there for it.
    assert peaks[0] > peaks[1] > peaks[2] >= peaks[3]


def test_a_slot_of_a_larger_image_needs_more(searched, plans):
    """Of twice the area about twice as much; what does not grow with the image (the prompt, the rotation) is a small part."""
    Y, X = searched.model.image_size
    larger = replace(searched, model=searched.model.at((Y, 2 * X))).plan(HUGE)
    assert 1.7 < larger.each / plans[False, False].each < 2.3


@pytest.mark.parametrize("way", [(False, False), (False, True), (True, False)])
def test_the_first_way_that_fits_is_taken(way, searched, plans):
    plan = searched.fitting(plans[way].peak)
    assert plan.fits
    assert (plan.gradient_checkpointing, plan.parked) == way
    said = plan.line()
    assert ("activations computed twice" in said, "text encoders on the GPU only to encode" in said) == way
    assert plan.as_json()["gradient_checkpointing"] == way[0]


@pytest.mark.slow
def test_where_nothing_fits_the_dry_run_names_what_packs_the_network(searched, plans):
    found = described(searched, None, 1e-3 + 0.7, smaller(searched))
    assert not found["fits"]
    assert found["gradient_checkpointing"]
    assert list(smaller(searched)) == [
        "set --dtype float16",
        "set --dtype float16 --quantize int8",
        "set --dtype float16 --quantize nf4",
    ]
    packed = replace(searched, quantize="nf4", gradient_checkpointing=True, parked=True).plan(HUGE)
    assert packed.weights < plans[True, True].weights


def test_a_generator_does_what_was_planned(plans, tiny_turbo, monkeypatch):
    generator = load_generator(ModelFolder.open(tiny_turbo))
    spare(generator, plans[False, False])
    parked = []
    monkeypatch.setattr(generator, "park", lambda **parts: parked.append(parts))
    generator.encode_prompts(["a"])
    assert not parked
    assert not generator.pipeline.unet.is_gradient_checkpointing
    spare(generator, plans[True, True])
    generator.encode_prompts(["a"])
    assert parked == [{"text": True}]
    assert generator.pipeline.unet.is_gradient_checkpointing
