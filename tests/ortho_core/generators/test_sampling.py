import pytest
import torch

from ortho_core.errors import UserError
from ortho_core.generators.sampling import at_rest, generate_images


def test_images_are_those_of_the_seeds_and_do_not_depend_on_the_batch(generator):
    prompts = ["a red three", "a blue five", "a red three"]
    images = generate_images(generator, prompts, seeds=[3, 4, 5])
    assert (images.dtype, images.shape) == (torch.float32, (3, 3, 32, 32))
    assert 0 <= images.min() <= images.max() <= 1
    with torch.no_grad():
        made = generator.decode(generator.denoise(generator.base_noise([4]), generator.encode_prompts(["a blue five"])))
    torch.testing.assert_close(images[1:2], made.clamp(0, 1), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        generate_images(generator, prompts, seeds=[3, 4, 5], batch_size=1), images, rtol=0, atol=1e-4
    )
    noise = generator.base_noise([3, 4, 5])
    torch.testing.assert_close(generate_images(generator, prompts, noise=noise), images, rtol=0, atol=0)


def test_prompts_and_seeds_stand_for_each_other(generator):
    four = generate_images(generator, "a red three", seeds=range(4))
    assert len(four) == 4
    torch.testing.assert_close(generate_images(generator, ["a red three"] * 4), four, rtol=0, atol=0)
    torch.testing.assert_close(generate_images(generator, "a red three"), four[:1], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": [1]}, "2 prompts for 1 seeds"),
        ({"noise": torch.zeros(2, 4, 9, 9)}, r"this model needs \(B, 4, 8, 8\)"),
        ({"noise": torch.zeros(2, 4, 8, 8), "seeds": [1, 2]}, "give one of them"),
        ({"seeds": [-5, 1]}, "seed -5: accepted"),
    ],
)
def test_what_does_not_fit_is_refused(generator, options, message):
    with pytest.raises(UserError, match=message):
        generate_images(generator, ["a", "b"], **options)
    with pytest.raises(UserError, match="no prompts and no seeds"):
        generate_images(generator, [])


def test_a_network_at_rest_is_afterwards_as_it_was(generator):
    network = generator.trainable
    first, second = list(network.parameters())[:2]
    first.requires_grad_(True)
    network.train()
    child = next(network.children()).eval()
    try:
        with at_rest(generator):
            assert not any(p.requires_grad for p in network.parameters())
            assert not any(module.training for module in network.modules())
        assert (first.requires_grad, second.requires_grad) == (True, False)
        assert (network.training, child.training) == (True, False)
    finally:
        network.requires_grad_(False).eval()
