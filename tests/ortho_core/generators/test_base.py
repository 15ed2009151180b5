import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ortho_core.errors import UserError
from ortho_core.generators.base import NETWORK_FILE, BaseGenerator, check_generator, check_latents
from ortho_core.generators.protocol import OneStepGenerator


@pytest.fixture
def own():
    return BaseGenerator(nn.Conv2d(3, 3, 3, padding=1), (3, 8, 8), (8, 8))


def test_a_network_is_a_generator_by_inheritance_alone(own):
    assert isinstance(own, OneStepGenerator)
    check_generator(own)
    noise = own.base_noise([1, 2])
    assert torch.equal(own.base_noise([2]), noise[1:])
    condition = own.encode_prompts(["a", "b"])
    assert len(condition) == 2
    latents = own.denoise(noise, condition)
    assert torch.equal(own.encode_images(torch.ones(1, 3, 8, 8)), torch.ones(1, 3, 8, 8))
    torch.testing.assert_close(own.encode_images(own.decode(latents)), latents)
    assert not any(p.requires_grad for p in own.trainable.parameters())
    assert own.count_truncated(["a"]) == 0


def test_its_weights_are_saved_for_its_network(own, tmp_path):
    own.save(str(tmp_path / "own"), card="# Mine\n")
    assert (tmp_path / "own" / "README.md").read_text() == "# Mine\n"
    other = nn.Conv2d(3, 3, 3, padding=1)
    other.load_state_dict(load_file(tmp_path / "own" / NETWORK_FILE))
    assert torch.equal(other.weight, own.network.weight)


def test_what_is_no_generator_is_told_what_it_lacks(own, generator):
    class Half:
        latent_shape, image_size = (3, 8, 8), (8, 8)

    with pytest.raises(
        UserError, match=r"Half is not a one-step generator, it has no base_noise, .*trainable: inherit"
    ):
        check_generator(Half())
    with pytest.raises(UserError, match="is a path, not a generator"):
        check_generator("models/tiny-turbo")


def test_latents_of_two_shapes_are_refused():
    small = BaseGenerator(nn.Conv2d(3, 3, 3), (3, 8, 8), (8, 8))
    with pytest.raises(UserError, match=r"denoise makes latents of shape \(3, 6, 6\), encode_images makes \(3, 8, 8\)"):
        check_latents(small, small.encode_prompts(["a"]), torch.zeros(1, 3, 8, 8))
