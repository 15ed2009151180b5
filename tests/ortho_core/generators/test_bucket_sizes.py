import json
import shutil

import pytest

from ortho_core.errors import UserError
from ortho_core.framing.image_size import text_of
from ortho_core.generators.bucket_sizes import automatic, check_sizes, needed_step, own_resolution, own_size
from ortho_core.generators.class_conditional import ClassGenerator, ClassNetwork
from ortho_core.generators.class_config import ClassConfig
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder


def test_the_step_is_what_autoencoder_network_and_patches_need(tiny_turbo):
    model = ModelFolder.open(tiny_turbo)
    # An autoencoder of factor 4, a network that halves once.
    assert [needed_step(model, patches) for patches in (1, 2, 3, 4, 5)] == [8, 8, 24, 16, 40]
    assert [text_of(size) for size in automatic(model, 48, 2)] == ["32x64", "40x56", "48x48", "56x40", "64x32"]
    assert automatic(model, own_resolution(model), 2) == ((40, 24), (32, 32), (24, 40))
    with pytest.raises(UserError, match="--resolution 4: sides must be multiples of 8 pixels; accepted: 8 or more"):
        automatic(model, 4, 2)


def test_the_model_s_own_size_stays_known_at_another(tiny_turbo):
    model = ModelFolder.open(tiny_turbo)
    other = model.at((24, 40)).at((48, 48))
    assert own_size(other) == own_size(model) == (32, 32)
    assert own_resolution(other) == 32
    assert other.at((32, 32)) == model


def test_sizes_that_do_not_fit_are_named(tiny_turbo):
    model = ModelFolder.open(tiny_turbo)
    check_sizes(model, ((24, 40), (40, 24)), 2)
    with pytest.raises(
        UserError,
        match="--buckets 24x42: both sides must be multiples of 8, for the autoencoder's factor 4 and the patch",
    ):
        check_sizes(model, ((24, 40), (42, 24)), 2)
    with pytest.raises(UserError, match=r"--buckets 28x40: both sides must be multiples of 8, .* \(2\)"):
        check_sizes(model, ((24, 40), (40, 28)), 2)


def test_a_class_conditional_model_has_one_size(tmp_path):
    config = ClassConfig(classes=("a", "b"), image_shape=(1, 28, 28), noise_shape=(8, 1, 1), widths=(8, 8))
    ClassGenerator(config, ClassNetwork(config)).save(tmp_path / "gan")
    with pytest.raises(UserError, match="class-conditional and makes only 28x28"):
        automatic(ModelFolder.open(tmp_path / "gan"), 28, 1)


def test_the_sizes_that_a_model_was_trained_at_are_saved_with_it(tiny_turbo, tmp_path):
    generator = load_generator(ModelFolder.open(tiny_turbo))
    generator.buckets = ("24x40", "40x24")
    generator.save(tmp_path / "trained")
    again = ModelFolder.open(tmp_path / "trained")
    assert again.recipe.buckets == ("24x40", "40x24")
    assert load_generator(again).buckets == again.recipe.buckets
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "trained", broken)
    (broken / "one_step.json").write_text(json.dumps({"buckets": ["large"]}))
    with pytest.raises(UserError, match=r"one_step.json: buckets is \['large'\]; accepted: a list of sizes"):
        ModelFolder.open(broken)
