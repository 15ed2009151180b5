"""Whether a class-conditional generator uses its noise: the distance between its images of one class, relative to the data's.

Axes: K classes, S images of each, c × Y × X.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ortho_core.device import to_float64
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.noise.seeded import noise_seed

#: Number of images per class that are compared.
SAMPLES_PER_CLASS = 32
#: Below this fraction of the data's distance the noise has almost no effect, and no noise can be matched to an image.
TOO_LITTLE = 0.2


@dataclass(frozen=True)
class Diversity:
    """The mean pairwise distance of samples per class, as a fraction of the data's."""

    by_class: dict[str, float]

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.by_class.values())))

    @property
    def too_little(self) -> list[str]:
        """The classes in which the generator ignores its noise."""
        return [name for name, part in self.by_class.items() if not part >= TOO_LITTLE]

    def as_json(self) -> dict[str, object]:
        by_class = {name: round(part, 4) for name, part in self.by_class.items()}
        return {"of_the_data's": round(self.mean, 4), "by_class": by_class, "ignores_noise_in": self.too_little}

    def sentence(self) -> str:
        """One line for the user; with a remedy if the diversity is too low."""
        least = min(self.by_class, key=lambda name: self.by_class[name])
        line = f"diversity {self.mean:.2f} of the data's, lowest in class {least!r}: {self.by_class[least]:.2f}"
        if not self.too_little:
            return line
        bad, of = len(self.too_little), len(self.by_class)
        return (
            f"{line}. The model IGNORES ITS NOISE in {bad} of {of} classes (below {TOO_LITTLE}), so matching noise to images "
            "will not help: train longer, or with --objective imle instead of gan"
        )


@torch.no_grad()
def diversity(generator: OneStepGenerator, classes: Sequence[str], images: Sequence[Tensor]) -> Diversity:
    """Compare samples with images of the data. `images` has one tensor (S, c, Y, X) per class, in the generator's value range.

    The noises are the same in every run. A class with one image, or only equal images, has no distance and is left out.
    """
    by_class = {}
    for name, real in zip(classes, images, strict=True):
        noise = generator.base_noise([noise_seed(0, "diversity", name, i) for i in range(len(real))])
        made = generator.denoise(noise, generator.encode_prompts([name] * len(real))).clamp(-1, 1)
        distance = mean_distance(real)
        if distance > 0:
            by_class[name] = mean_distance(made) / distance
    return Diversity(by_class)


def mean_distance(images: Tensor) -> float:
    """Mean root-mean-square distance over all pairs of images (S, c, Y, X); 0 for fewer than two images."""
    if len(images) < 2:
        return 0.0
    flat = to_float64(images.flatten(1))
    return float(torch.pdist(flat).mean() / flat.shape[1] ** 0.5)
