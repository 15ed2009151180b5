"""A worker's share of an update, and the rows that it is made of.

Axes: B rows, P preserve rows, C × H × W noise, c × h × w latents, Y × X × 3 images.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load, save

from ortho_core.framing.frame import Frame

#: The fields of a share that are lists, and those that are arrays.
LISTS = ("rows", "row_names", "prompts", "frames", "preserve_prompts", "unusable")
ARRAYS = ("noise", "kept", "targets", "images", "preserve_noise", "preserve_weights", "weights")
#: The column of a packed share.
PACKED_SHARE = "share"


@dataclass(frozen=True)
class Share:
    """One worker's share of an update, in host memory; of images of several sizes, the rows of one size."""

    #: Row numbers in the set.
    rows: list[int]
    #: Names of the rows for messages.
    row_names: list[str]
    prompts: list[str]
    noise: np.ndarray
    #: The noise that is mixed with fresh noise before online matching; None if the noise is all fresh or not matched online.
    kept: np.ndarray | None
    #: Stored target latents; None if none were stored: then `images` are encoded.
    targets: np.ndarray | None
    #: (B, Y, X, 3) uint8.
    images: np.ndarray | None
    preserve_prompts: list[str]
    preserve_noise: np.ndarray | None
    #: The weight of each preserve row in this worker's mean, (P,) float32; see `MatchedData.micro_batches`.
    preserve_weights: np.ndarray | None = None
    #: Messages about rows that were replaced by others; each is reported once.
    unusable: list[str] = field(default_factory=list)
    #: The frame of each row that the model is told, as six numbers; empty: the plain frame of the model's own size.
    frames: list[list[int]] = field(default_factory=list)
    #: The weight of each row in the sum over all parts of the share, (B,) float32; None: the share is one part.
    weights: np.ndarray | None = None
    #: The rows of further sizes.
    others: tuple["Share", ...] = ()

    @property
    def parts(self) -> tuple["Share", ...]:
        """The rows of each size."""
        return replace(self, others=()), *self.others

    @property
    def real_rows(self) -> list[int]:
        """The numbers, over all parts, of the rows that do not fill up a part."""
        fills = [
            part.weights is not None and part.weights[k] == 0 for part in self.parts for k in range(len(part.rows))
        ]
        return [number for number, fill in enumerate(fills) if not fill]

    def as_row(self) -> dict[str, np.ndarray]:
        """A share of one part as a table of one row: arrays with a first axis of 1, texts as JSON."""
        texts = {k: json.dumps(getattr(self, k)) for k in LISTS}
        arrays = {k: getattr(self, k) for k in ARRAYS}
        return {k: np.array([v]) for k, v in texts.items()} | {k: v[None] for k, v in arrays.items() if v is not None}

    def packed(self) -> dict[str, np.ndarray]:
        """A share of any parts as a table of one row with one column of bytes: the shapes of its arrays may differ by row."""
        texts = [{k: getattr(part, k) for k in LISTS} for part in self.parts]
        arrays = {"texts": np.frombuffer(json.dumps(texts).encode(), np.uint8)}
        for number, part in enumerate(self.parts):
            named = {f"{number}.{k}": getattr(part, k) for k in ARRAYS}
            arrays |= {name: np.ascontiguousarray(array) for name, array in named.items() if array is not None}
        return {PACKED_SHARE: np.array([save(arrays)], dtype=object)}

    @staticmethod
    def of_row(row: Mapping[str, np.ndarray]) -> "Share":
        """The inverse of `as_row` and `packed`. The arrays are copies, because a table's arrays may be read-only."""
        if PACKED_SHARE in row:
            arrays = load(bytes(row[PACKED_SHARE][0]))
            several = [
                Share(**texts, **{k: arrays.get(f"{number}.{k}") for k in ARRAYS})
                for number, texts in enumerate(json.loads(arrays["texts"].tobytes()))
            ]
            return replace(several[0], others=tuple(several[1:]))
        parts: dict[str, Any] = {k: json.loads(row[k][0]) for k in LISTS}
        for name in ARRAYS:
            parts[name] = row[name][0].copy() if name in row else None
        return Share(**parts)


class UpdatePlace(NamedTuple):
    """The place of a share: its update, and its worker of `world`."""

    epoch: int
    step: int
    rank: int
    world: int


@dataclass(frozen=True)
class ReadRows:
    """Some rows as they are read, before they get their noise."""

    index: list[int]
    #: The sample id and the image of each.
    named: list[tuple[str, str]]
    prompts: list[str]
    frames: list[Frame | None]
    images: list[np.ndarray] | None
    #: As in `Share`.
    weights: np.ndarray | None = None
    #: For rows with weights: their places among all rows of the update, -1 for a row that fills up.
    places: list[int] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)

    def taken(self, some: Sequence[int], unusable: list[str]) -> "ReadRows":
        """Some of the rows, by their numbers among these."""
        lists = {name: [getattr(self, name)[k] for k in some] for name in ("index", "named", "prompts", "frames")}
        images = None if self.images is None else [self.images[k] for k in some]
        weights = None if self.weights is None else self.weights[list(some)]
        places = [self.places[k] for k in some] if self.places else []
        return ReadRows(**lists, images=images, weights=weights, places=places, unusable=unusable)
