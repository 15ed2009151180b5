"""Encoded prompts, computed once per distinct prompt."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ortho_core.device import to_device
from ortho_core.generators.prompt_store import ENCODED_AT_ONCE, PromptStore
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
        batch_size: int = ENCODED_AT_ONCE,
        most_bytes: int = 1 << 30,
        stored: Callable[[list[str]], Mapping[str, dict[str, Tensor]]] | None = None,
    ) -> None:
        """`encode` returns named tensors with one row per text. `filler` is the text that pads batches (None: the last text).

        `stored` returns the rows of texts that are stored elsewhere, without a batch axis; the others are encoded.
        """
        self.encode, self.filler, self.stored = encode, filler, stored
        self.capacity, self.batch_size, self.most_bytes = capacity, batch_size, most_bytes
        #: Encoded rows by text, without a batch axis.
        self.rows: Rows = OrderedDict()
        #: Number of consecutive calls that needed no encoding.
        self.quiet_calls = 0

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> dict[str, Tensor]:
        """One row per text, in order."""
        missing = [text for text in dict.fromkeys(texts) if text not in self.rows]
        if missing and self.stored is not None:
            self.rows |= self.stored(missing)
            missing = [text for text in missing if text not in self.rows]
        self.quiet_calls = 0 if missing else self.quiet_calls + 1
        for start in range(0, len(missing), self.batch_size):
            self.rows |= encoded_rows(
                self.encode, missing[start : start + self.batch_size], self.batch_size, self.filler
            )
        rows = [self.rows[text] for text in texts]
        for text in texts:
            self.rows.move_to_end(text)
        if not rows:
            return {}
        each = sum(tensor.nbytes for tensor in rows[0].values())  # 0.6 MB for SDXL's two encoders in float32
        while len(self.rows) > max(min(self.capacity, self.most_bytes // each), len(set(texts))):
            self.rows.popitem(last=False)
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@torch.no_grad()
def encoded_rows(
    encode: Callable[[list[str]], Mapping[str, Tensor]], texts: Sequence[str], batch_size: int, filler: str | None
) -> dict[str, dict[str, Tensor]]:
    """The rows of at most `batch_size` texts, encoded as one batch that is filled up to this size; without a batch axis."""
    filled = [*texts, *[texts[-1] if filler is None else filler] * (batch_size - len(texts))]
    encoded = encode(filled)
    # Copies, because a view would keep its batch in memory.
    return {text: {name: tensor[i].clone() for name, tensor in encoded.items()} for i, text in enumerate(texts)}


#: The text that fills up batches of prompts.
FILLER = ""


def encode_with(generator: OneStepGenerator, prompts: list[str]) -> Mapping[str, Tensor]:
    """`generator.encode_prompts`. Without autocast: an embedding must not depend on the step that needs it first."""
    with torch.autocast(generator.device.type, enabled=False):
        return generator.encode_prompts(prompts).tensors


class PromptCache:
    """A cache of a generator's conditions for prompts: from memory, else from a store, else encoded.

    The store is only read. `rayjobs.pool.prompt_pass` fills it; what it lacks is encoded here. The rows are the same, bit for
    bit, with a store and without.
    """

    def __init__(self, generator: OneStepGenerator, store: PromptStore | None = None, **limits: int) -> None:
        """`store` has the embeddings of the generator's encoding. `limits` are those of `TextCache`.

        Raises UserError for a store with a damaged shard.
        """

        def stored(prompts: list[str]) -> dict[str, dict[str, Tensor]]:
            assert store is not None
            rows = store.rows(prompts, generator.image_size)
            return {
                prompt: {name: to_device(tensor, generator.device) for name, tensor in row.items()}
                for prompt, row in rows.items()
            }

        if store is not None:
            store.open()
        self._cache = TextCache(
            lambda prompts: encode_with(generator, prompts),
            filler=FILLER,
            stored=None if store is None else stored,
            **limits,
        )

    def __call__(self, prompts: list[str]) -> Condition:
        """One row per prompt, in order."""
        return Condition(self._cache(prompts))

    @property
    def has_store(self) -> bool:
        """Whether embeddings are read from a store."""
        return self._cache.stored is not None

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
