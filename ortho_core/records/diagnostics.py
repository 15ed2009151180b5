"""The Gaussian statistics of a run's noise, pooled over rows."""

import math

from ortho_core.noise.gaussianity import NoiseStatistics, diagnostics
from ortho_core.records.assignments import Assignments
from ortho_core.storage.store import Store

#: Noise values in the pooled diagnostics: enough to detect small departures within seconds.
POOLED = 1 << 22


def write_gaussianity(out: Store, latent_shape: tuple[int, int, int]) -> NoiseStatistics:
    """Write `orthogonal_gaussian_init` and `_final` as JSON and PNG, pooled over rows of all shards; returns the final ones."""
    assignments = Assignments(out.location)
    count = max(1, min(len(assignments), POOLED // math.prod(latent_shape)))
    index = [i * len(assignments) // count for i in range(count)]
    maps = {"init": assignments.base_noise(index, latent_shape), "final": assignments.noise(index, latent_shape)}
    titles = {"init": "base noise", "final": "assigned noise, pooled"}
    for when, noise in maps.items():
        statistics, files = diagnostics(noise, assignments.plan.noise.patch_size, titles[when])
        for suffix, content in files.items():
            out.replace(f"orthogonal_gaussian_{when}{suffix}", content)
    return statistics
