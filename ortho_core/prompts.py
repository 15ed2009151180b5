"""Prompt embeddings, computed once per distinct prompt."""

from collections import OrderedDict

import torch

from ortho_core.generators.base import Condition, OneStepGenerator


class PromptCache:
    """The conditions of the prompts seen last, at most `capacity` of them (least recently used goes first)."""

    def __init__(self, generator: OneStepGenerator, capacity: int = 4096) -> None:
        self.generator, self.capacity = generator, capacity
        self._rows: OrderedDict[str, Condition] = OrderedDict()

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> Condition:
        """One row per prompt, in order."""
        missing = [p for p in dict.fromkeys(prompts) if p not in self._rows]
        # One at a time: a batch of another size rounds differently, and which prompts are missing depends on what this
        # worker happened to see before. An image's result may not.
        fresh = {p: self.generator.encode_prompts([p]) for p in missing}
        rows = [fresh[p] if p in fresh else self._rows[p] for p in prompts]
        self._rows.update(fresh)
        for prompt in prompts:
            self._rows.move_to_end(prompt)
        while len(self._rows) > max(self.capacity, len(set(prompts))):
            self._rows.popitem(last=False)
        return Condition.cat(rows)
