"""Gaussian noise that depends only on its seed, not on batch, worker, order, device or cluster size."""

import hashlib

import numpy as np
import torch
from torch import Tensor


def noise_seed(run_seed: int, *names: str | int) -> int:
    """A 63-bit seed from the run's seed and names such as a sample id or an epoch (SHA-256, first eight bytes)."""
    text = "\x1f".join([str(run_seed), *(str(n) for n in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seeded_normal(seeds: list[int], shape: tuple[int, ...]) -> Tensor:
    """N(0, 1) float32 of shape (B, *shape). Row b is drawn from NumPy's Philox counter generator with key seeds[b]."""
    rows = [np.random.Generator(np.random.Philox(key=s)).standard_normal(shape, dtype=np.float32) for s in seeds]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, *shape)
