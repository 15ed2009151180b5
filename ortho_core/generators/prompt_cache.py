"""Encoded prompts, computed once per distinct prompt."""

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ortho_core.generators.protocol import Condition, OneStepGenerator

Rows = OrderedDict[str, dict[str, Tensor]]


class TextCache:
    """A cache of encoded texts: at most `capacity` rows and `most_bytes` bytes. The least recently used is dropped first.

    Texts are encoded in padded batches of one fixed size. Batches of different sizes round differently, and which texts must be
    encoded depends on what the worker saw before; an image's result must not depend on that.
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
        """`encode` returns named tensors with one row per text. `filler` is the text that pads batches (None: the last text)."""
        self.encode, self.filler = encode, filler
        self.capacity, self.batch_size, self.most_bytes = capacity, batch_size, most_bytes
        #: Encoded rows by text, without a batch axis.
        self.rows: Rows = OrderedDict()
        #: Number of consecutive calls that needed no encoding.
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
            # Copies, because a view would keep its batch in memory.
            self.rows |= {text: {k: v[i].clone() for k, v in encoded.items()} for i, text in enumerate(part)}
        rows = [self.rows[text] for text in texts]
        for text in texts:
            self.rows.move_to_end(text)
        if not rows:
            return {}
        each = sum(tensor.nbytes for tensor in rows[0].values())  # 0.6 MB for SDXL's two encoders in float32
        while len(self.rows) > max(min(self.capacity, self.most_bytes // each), len(set(texts))):
            self.rows.popitem(last=False)
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


class PromptCache:
    """A cache of a generator's conditions for prompts."""

    def __init__(self, generator: OneStepGenerator, **limits: int) -> None:
        """`limits` are those of `TextCache`."""
        self._cache = TextCache(lambda prompts: generator.encode_prompts(prompts).tensors, filler="", **limits)

    def __call__(self, prompts: list[str]) -> Condition:
        """One row per prompt, in order."""
        return Condition(self._cache(prompts))

    @property
    def conditions(self) -> Rows:
        """The cached rows. They may be set on a cache of another generator with the same text encoders."""
        return self._cache.rows

    @conditions.setter
    def conditions(self, rows: Rows) -> None:
        self._cache.rows = rows

    @property
    def quiet_calls(self) -> int:
        """Number of consecutive calls that needed no encoding."""
        return self._cache.quiet_calls
