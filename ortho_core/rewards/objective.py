"""The objective of reward optimisation: the noise whose image scores highest. And rewards' prompts, encoded once.

Axes: B images, C × H × W noise maps, 3 × Y × X images.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ortho_core.generators.protocol import Condition, OneStepGenerator
from ortho_core.rewards.combined import WeightedSum

#: Prefixes of the inputs that are the generator's condition and the rewards' encoded prompts.
CONDITION, ENCODED = "condition.", "encoded."


class RewardObjective:
    """-Σ_k w_k·r_k(D(f(ε̂,c)), c), the rewards weighted and summed, as a loss per image.

    The parts of a call are the rewards themselves, higher is better. `on_images` hears of every call's images.
    """

    def __init__(
        self,
        generator: OneStepGenerator,
        rewards: WeightedSum,
        told: WeightedSum | None = None,
        on_images: Callable[[Tensor], None] | None = None,
    ) -> None:
        """`told` are the rewards that a record tells of, these among them; none: these."""
        self.generator, self.rewards, self.on_images = generator, rewards, on_images
        self.told = told if told is not None else rewards
        self.parts: tuple[str, ...] = tuple(rewards.weights)

    def inputs(self, condition: Condition, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs of B prompts: what generator and rewards need to know of each."""
        found = {CONDITION + name: tensor for name, tensor in condition.tensors.items()}
        return found | {ENCODED + name: tensor for name, tensor in encoded.items()}

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


class RewardCache:
    """What rewards make of the prompts seen last (least recently used goes first), each encoded once.

    Prompts are encoded in batches of one size, so that a prompt's numbers do not hang on which others are new.
    """

    def __init__(self, rewards: WeightedSum, capacity: int = 4096, batch_size: int = 8) -> None:
        self.rewards, self.capacity, self.batch_size = rewards, capacity, batch_size
        self._rows: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> dict[str, Tensor]:
        """One row per prompt, in order."""
        missing = [p for p in dict.fromkeys(prompts) if p not in self._rows]
        fresh: dict[str, dict[str, Tensor]] = {}
        for start in range(0, len(missing), self.batch_size):
            part = missing[start : start + self.batch_size]
            encoded = self.rewards.encode_prompts(part + part[-1:] * (self.batch_size - len(part)))
            fresh |= {p: {name: tensor[i].clone() for name, tensor in encoded.items()} for i, p in enumerate(part)}
        self._rows |= fresh
        for prompt in prompts:
            self._rows.move_to_end(prompt)
        rows = [self._rows[p] for p in prompts]
        while len(self._rows) > max(self.capacity, len(set(prompts))):
            self._rows.popitem(last=False)
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]} if rows else {}
