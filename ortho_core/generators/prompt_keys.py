"""Prompts by their hashes: 8 bytes each in memory, so that the different prompts of a large set can be counted.

Among 10⁸ prompts, two have the same 64 bits with a probability of 3 in 10,000. The second one then counts as known; its
embedding is not stored, and whoever needs it encodes it.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

#: Bytes of a key: SHA-256.
KEY_BYTES = 32


def prompt_key(prompt: str) -> bytes:
    """SHA-256 of a prompt in UTF-8."""
    return hashlib.sha256(prompt.encode(errors="surrogatepass")).digest()


def number_of(key: bytes) -> int:
    """The first 64 bits of a key."""
    return int.from_bytes(key[:8], "big")


def numbers_of(prompts: Sequence[str]) -> np.ndarray:
    """The first 64 bits of each prompt's key, uint64."""
    return np.array([number_of(prompt_key(prompt)) for prompt in prompts], np.uint64)


class SeenNumbers:
    """A growing set of 64-bit numbers, in 8 bytes each: sorted arrays, of which two of similar length are merged."""

    def __init__(self, numbers: np.ndarray) -> None:
        self._runs = [np.unique(numbers)]

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def fresh(self, numbers: np.ndarray) -> np.ndarray:
        """For each number, whether it occurs for the first time; it counts as seen afterwards."""
        new = np.zeros(len(numbers), bool)
        new[np.unique(numbers, return_index=True)[1]] = True
        for run in self._runs:
            new &= ~_contained(run, numbers)
        if new.any():
            self._runs.append(np.sort(numbers[new]))
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            last = self._runs.pop()
            self._runs[-1] = np.sort(np.concatenate([self._runs[-1], last]), kind="stable")
        return new


def _contained(run: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Whether each of the numbers is in a sorted array."""
    if not len(run):
        return np.zeros(len(numbers), bool)
    return run[np.minimum(np.searchsorted(run, numbers), len(run) - 1)] == numbers
