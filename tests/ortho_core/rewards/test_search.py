import subprocess
import sys

import pytest
import torch

from ortho_core.errors import UserError
from ortho_core.estep.config import AssignConfig, SearchConfig
from ortho_core.rewards.base import Scoring
from ortho_core.rewards.search import FunctionReward, raise_reward

CONFIG = SearchConfig(steps=4)
PROMPT = "a green handwritten two on a black background"


def brightness(images):
    return images.mean((1, 2, 3))


def test_a_function_of_images_rises(generator):
    found = raise_reward(generator, brightness, PROMPT, CONFIG, seeds=[0, 1])
    assert (found.terms["brightness"] > found.initial_terms["brightness"]).all()
    torch.testing.assert_close(found.loss, -found.terms["brightness"])
    torch.testing.assert_close(brightness(found.images), found.terms["brightness"], rtol=0, atol=2e-3)
    with torch.no_grad():
        made = generator.decode(found.target_latents).clamp(0, 1)
    torch.testing.assert_close(made, found.images, rtol=0, atol=1e-4)


def test_a_reward_knows_the_prompts(generator):
    class Asked(Scoring):
        name = "asked"

        def encode_prompts(self, prompts):
            return {"sign": torch.tensor([[1.0 if "bright" in prompt else -1.0] for prompt in prompts])}

        def score_encoded(self, images, encoded):
            return encoded["sign"][:, 0] * brightness(images)

    found = raise_reward(generator, Asked(), ["a bright two", "a two"], CONFIG)
    before, after = found.initial_terms["asked"], found.terms["asked"]
    assert before[0] > 0 > before[1]
    assert (after > before).all()


@pytest.mark.parametrize(
    ("reward", "options", "message"),
    [
        (lambda images: images.mean(), {}, r"reward lambda returned shape \(\) for 1 images"),
        (lambda images: brightness(images.detach()), {}, "has no gradient in the images"),
        (
            lambda images: brightness(images).tolist(),
            {},
            r"reward lambda returned list; accepted: a torch tensor \(1,\)",
        ),
        (lambda images: brightness(images) / 0 * 0, {}, "reward lambda is not finite for any of the 1 images"),
        (FunctionReward(brightness, "total"), {}, "cannot be called total"),
        (brightness, {"seeds": [1, 2], "prompts": ["a"]}, "1 prompts for 2 seeds"),
        (brightness, {"prompts": []}, "no prompts and no seeds"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(generator, reward, options, message):
    with pytest.raises(UserError, match=message):
        raise_reward(**{"generator": generator, "reward": reward, "prompts": "a", "config": CONFIG} | options)


def test_the_name_of_a_reward_is_no_reward(tiny_turbo):
    """In a Python without the tests' checks of types."""
    program = (
        "from ortho_core import load_generator, raise_reward\n"
        f"raise_reward(load_generator({str(tiny_turbo)!r}), 'clip', 'a')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "UserError: reward 'clip' is not a function of images; accepted: a function, or a Reward" in done.stderr


def test_an_e_steps_configuration_serves_too(generator):
    assert len(raise_reward(generator, brightness, PROMPT, AssignConfig(steps=1))) == 1
