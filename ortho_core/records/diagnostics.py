"""The Gaussian statistics of a run's noise, pooled over rows."""

import math

from ortho_core.framing.frame import Frame, Size
from ortho_core.noise.gaussianity import NoiseStatistics, diagnostics
from ortho_core.records.assignments import Assignments, shape_at
from ortho_core.storage.store import Store

#: Noise values in the pooled diagnostics: enough to detect small departures within seconds.
POOLED = 1 << 22


def write_gaussianity(out: Store, latent_shape: tuple[int, int, int], image_size: Size) -> NoiseStatistics:
    """Write `orthogonal_gaussian_init` and `_final` as JSON and PNG, pooled over rows of all shards; returns the final ones.

    `latent_shape` is the noise's shape for images of `image_size` (Y, X). Of images of several sizes, those of the most frequent
    size are pooled.
    """
    assignments = Assignments(out.location)
    size, rows = max(assignments.by_size(image_size).items(), key=lambda each: len(each[1]))
    latent_shape = shape_at(Frame.plain(size), latent_shape, image_size)
    index = rows.spread(max(1, POOLED // math.prod(latent_shape)))
    maps = {"init": assignments.base_noise(index, latent_shape), "final": assignments.noise(index, latent_shape)}
    titles = {"init": "base noise", "final": "assigned noise, pooled"}
    for when, noise in maps.items():
        statistics, files = diagnostics(noise, assignments.plan.noise.patch_size, titles[when])
        for suffix, content in files.items():
            out.replace(f"orthogonal_gaussian_{when}{suffix}", content)
    return statistics
