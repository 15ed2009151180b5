"""The objective of a reward search: find the noise with the highest reward.

Axes: B images, C × H × W noise maps, 3 × Y × X images.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ortho_core.generators.protocol import Condition, OneStepGenerator
from ortho_core.rewards.combined import WeightedSum

#: Prefixes of the inputs: the generator's condition, and the rewards' encoded prompts.
CONDITION, ENCODED = "condition.", "encoded."


class RewardObjective:
    """-Σ_k w_k·r_k(D(f(ε̂,c)), c), the negative weighted sum of rewards, as a loss per image.

    The parts of a call are the rewards, higher is better. `on_images` is called with the images (B, 3, Y, X) of every call.
    """

    def __init__(
        self,
        generator: OneStepGenerator,
        rewards: WeightedSum,
        reported: WeightedSum | None = None,
        on_images: Callable[[Tensor], None] | None = None,
    ) -> None:
        """`reported` are the rewards in a record, which include `rewards`; None: only `rewards`."""
        self.generator, self.rewards, self.on_images = generator, rewards, on_images
        self.reported = reported if reported is not None else rewards
        self.parts: tuple[str, ...] = tuple(rewards.weights)

    def inputs(self, condition: Condition, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs of B prompts: the generator's condition and the rewards' encoded prompts."""
        inputs = {CONDITION + name: tensor for name, tensor in condition.tensors.items()}
        return inputs | {ENCODED + name: tensor for name, tensor in encoded.items()}

    @torch.no_grad()
    def blank_inputs(self, count: int) -> dict[str, Tensor]:
        texts = ["an image"] * count
        return self.inputs(self.generator.encode_prompts([""] * count), self.rewards.encode_prompts(texts))

    def __call__(self, noise: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        condition = Condition({k.removeprefix(CONDITION): v for k, v in inputs.items() if k.startswith(CONDITION)})
        encoded = {k.removeprefix(ENCODED): v for k, v in inputs.items() if k.startswith(ENCODED)}
        images = self.generator.decode(self.generator.denoise(noise, condition))
        if self.on_images is not None:
            self.on_images(images.detach())
        scores = self.rewards.scores(images, encoded)
        return {"total": -self.rewards.total(scores), **scores}
