"""Noise that a row keeps from one online matching to the next, and its mixture with fresh noise.

Axes: N rows of the set, B rows of an update, C × H × W noise maps.
"""

import math
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float16
from torch import Tensor


def refreshed(
    kept: Float[np.ndarray, "B C H W"], fresh: Float[np.ndarray, "B C H W"], part: float
) -> Float[np.ndarray, "B C H W"]:
    """√(1-r)·kept + √r·fresh with r = `part`. If both are N(0, I), so is the mixture; r is the fresh share of its variance."""
    return (np.sqrt(1 - part) * kept + np.sqrt(part) * fresh).astype(np.float32)


class LatestNoise:
    """The noise of each row's last search, in half precision, in an unnamed file of the temporary folder.

    The file needs 2·C·H·W bytes for each row that was trained on; if the rows have several shapes, those of the largest. It
    disappears when the process ends for any reason.
    """

    def __init__(self, rows: int, latent_shape: tuple[int, int, int]) -> None:
        """`latent_shape` (C, H, W) is that of the largest map."""
        with tempfile.TemporaryFile() as file:
            self.maps = np.memmap(file, np.float16, "w+", shape=(rows, math.prod(latent_shape)))
        self.known = np.zeros(rows, dtype=bool)

    def recall(self, rows: Sequence[int], otherwise: Float[np.ndarray, "B C H W"]) -> Float[np.ndarray, "B C H W"]:
        """The last noise of these rows; `otherwise` for rows that were not trained on yet."""
        known = self.known[rows][:, None, None, None]
        numbers = otherwise[0].size
        return np.where(known, self.maps[rows, :numbers].astype(np.float32).reshape(otherwise.shape), otherwise)

    def flattened(self, maps: Float[Tensor, "B ..."]) -> Float16[Tensor, "B numbers"]:
        """Maps in half precision, each as equally many numbers, whatever their shape."""
        flat = maps.half().flatten(1)
        return torch.nn.functional.pad(flat, (0, self.maps.shape[1] - flat.shape[1]))

    def remember(self, rows: Sequence[int], maps: Float16[Tensor, "B ..."]) -> None:
        """Keep maps of the rows, also as `flattened` gives them."""
        self.maps[rows] = self.flattened(maps).numpy()
        self.known[rows] = True

    def state_dict(self) -> dict[str, Any]:
        """The noise of all rows and the flags of known rows; not copies."""
        return {"maps": torch.from_numpy(self.maps), "known": torch.from_numpy(self.known)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.maps[:] = state["maps"].numpy()
        self.known[:] = state["known"].numpy()
