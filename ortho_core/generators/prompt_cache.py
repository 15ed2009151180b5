"""Prompt embeddings, computed once per distinct prompt."""

from collections import OrderedDict

import torch

from ortho_core.generators.protocol import Condition, OneStepGenerator


class PromptCache:
    """The conditions of the prompts seen last, at most `capacity` of them and `most_bytes` (least recently used goes first).

    Prompts are encoded in batches of one size, filled up where there are fewer: a batch of another size rounds differently,
    which prompts are missing depends on what a worker happened to see before, and an image's result may not.
    """

    def __init__(
        self, generator: OneStepGenerator, capacity: int = 4096, batch_size: int = 8, most_bytes: int = 1 << 30
    ) -> None:
        self.generator, self.capacity, self.batch_size, self.most_bytes = generator, capacity, batch_size, most_bytes
        self.conditions: OrderedDict[str, Condition] = OrderedDict()
        #: Calls in a row that found every prompt here.
        self.quiet_calls = 0

    @torch.no_grad()
    def __call__(self, prompts: list[str]) -> Condition:
        """One row per prompt, in order."""
        missing = [p for p in dict.fromkeys(prompts) if p not in self.conditions]
        self.quiet_calls = 0 if missing else self.quiet_calls + 1
        fresh: dict[str, Condition] = {}
        for start in range(0, len(missing), self.batch_size):
            part = missing[start : start + self.batch_size]
            encoded = self.generator.encode_prompts(part + [""] * (self.batch_size - len(part)))
            # Copies: a view would keep its whole batch in memory.
            fresh |= {p: encoded[[i]] for i, p in enumerate(part)}
        rows = [fresh[p] if p in fresh else self.conditions[p] for p in prompts]
        self.conditions.update(fresh)
        for prompt in prompts:
            self.conditions.move_to_end(prompt)
        each = sum(t.nbytes for t in rows[0].tensors.values())  # of SDXL's two encoders, 0.6 MB in float32
        while len(self.conditions) > max(min(self.capacity, self.most_bytes // each), len(set(prompts))):
            self.conditions.popitem(last=False)
        return Condition.cat(rows)
