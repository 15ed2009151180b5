"""The option `--size`: texts it accepts, and what a model folder becomes at another size."""

import pytest
from pydantic import TypeAdapter, ValidationError

from ortho_core.errors import UserError
from ortho_core.framing.image_size import ImageSize, size_of, text_of
from ortho_core.generators.class_conditional import ClassGenerator, ClassNetwork
from ortho_core.generators.class_config import ClassConfig
from ortho_core.generators.model_folder import ModelFolder

SIZE = TypeAdapter(ImageSize)


@pytest.mark.parametrize(
    ("text", "size"), [("768x512", (512, 768)), ("768", (768, 768)), (40, (40, 40)), ("40X24", (24, 40))]
)
def test_a_size_is_width_times_height(text, size):
    assert size_of(SIZE.validate_python(text)) == size
    assert text_of(size) == SIZE.validate_python(text)
    assert SIZE.validate_python(SIZE.validate_python(text)) == SIZE.validate_python(text)


@pytest.mark.parametrize("text", ["", "big", "768x", "x512", "0x512", "768x512x3", "-768x512", "9000x512", 7.5, True])
def test_another_text_is_refused_with_what_is_accepted(text):
    with pytest.raises(ValidationError, match="WIDTHxHEIGHT in pixels such as 768x512"):
        SIZE.validate_python(text)


def test_a_model_at_another_size_is_the_same_model(tiny_turbo):
    model = ModelFolder.open(tiny_turbo)
    assert model.at(None) is model.at(model.image_size) is model
    other = model.at((24, 40))
    assert (other.latent_shape, other.target_shape, other.image_size) == ((4, 6, 10), (4, 6, 10), (24, 40))
    assert other.fingerprint == model.fingerprint


def test_a_size_that_the_model_cannot_make_is_refused(tiny_turbo, tmp_path):
    with pytest.raises(UserError, match="--size 41x24: both sides must be multiples of 4, the autoencoder's factor"):
        ModelFolder.open(tiny_turbo).at((24, 41))
    config = ClassConfig(classes=("a", "b"), noise_shape=(2, 4, 4), image_shape=(1, 16, 16), widths=(8, 8, 8))
    ClassGenerator(config, ClassNetwork(config)).save(tmp_path / "classes")
    with pytest.raises(UserError, match=r"--size 40x24: .*class-conditional and makes only 16x16"):
        ModelFolder.open(tmp_path / "classes").at((24, 40))
