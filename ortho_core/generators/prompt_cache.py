"""Encoded prompts, computed once per distinct prompt."""

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ortho_core.generators.protocol import Condition, OneStepGenerator

Rows = OrderedDict[str, dict[str, Tensor]]


class TextCache:
    """The encoded rows of the texts seen last, at most `capacity` of them and `most_bytes` (least recently used goes first).

    Texts are encoded in batches of one size, filled up where there are fewer: a batch of another size rounds differently,
    which texts are missing depends on what a worker happened to see before, and an image's result may not.
    """

    def __init__(
        self,
        encode: Callable[[list[str]], Mapping[str, Tensor]],
        *,
        filler: str | None = None,
        capacity: int = 4096,
        batch_size: int = 8,
        most_bytes: int = 1 << 30,
    ) -> None:
        """`encode` gives named tensors with one row per text. `filler` fills batches up; none: the last text of each."""
        self.encode, self.filler = encode, filler
        self.capacity, self.batch_size, self.most_bytes = capacity, batch_size, most_bytes
        #: By text, each without a batch axis.
        self.rows: Rows = OrderedDict()
        #: Calls in a row that needed no encoding.
        self.quiet_calls = 0

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> dict[str, Tensor]:
        """One row per text, in order."""
        missing = [text for text in dict.fromkeys(texts) if text not in self.rows]
        self.quiet_calls = 0 if missing else self.quiet_calls + 1
        for start in range(0, len(missing), self.batch_size):
            part = missing[start : start + self.batch_size]
            filler = part[-1] if self.filler is None else self.filler
            encoded = self.encode(part + [filler] * (self.batch_size - len(part)))
            # Copies: a view would keep its whole batch in memory.
            self.rows |= {text: {k: v[i].clone() for k, v in encoded.items()} for i, text in enumerate(part)}
        rows = [self.rows[text] for text in texts]
        for text in texts:
            self.rows.move_to_end(text)
        if not rows:
            return {}
        each = sum(tensor.nbytes for tensor in rows[0].values())  # of SDXL's two encoders, 0.6 MB in float32
        while len(self.rows) > max(min(self.capacity, self.most_bytes // each), len(set(texts))):
            self.rows.popitem(last=False)
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


class PromptCache:
    """The generator's conditions of the prompts seen last."""

    def __init__(self, generator: OneStepGenerator, **limits: int) -> None:
        """`limits` are those of `TextCache`."""
        self._cache = TextCache(lambda prompts: generator.encode_prompts(prompts).tensors, filler="", **limits)

    def __call__(self, prompts: list[str]) -> Condition:
        """One row per prompt, in order."""
        return Condition(self._cache(prompts))

    @property
    def conditions(self) -> Rows:
        """What is kept; a cache of another generator with the same text encoders may be given it."""
        return self._cache.rows

    @conditions.setter
    def conditions(self, rows: Rows) -> None:
        self._cache.rows = rows

    @property
    def quiet_calls(self) -> int:
        """Calls in a row that needed no encoding."""
        return self._cache.quiet_calls
