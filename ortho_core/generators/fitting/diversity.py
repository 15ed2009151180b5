"""Does a class-conditional generator use its noise? How far apart its images of one class are, beside how far the data's are.

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

#: Images of each class that are compared.
SAMPLES_PER_CLASS = 32
#: Below this part of the data's own distance the noise decides next to nothing, and none can be matched to an image.
TOO_LITTLE = 0.2


@dataclass(frozen=True)
class Diversity:
    """Of each class the mean pairwise distance of samples, as a part of the data's."""

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
        """One line for the person who trains; says what to do where it is too little."""
        least = min(self.by_class, key=lambda name: self.by_class[name])
        line = f"diversity {self.mean:.2f} of the data's, least in class {least!r}: {self.by_class[least]:.2f}"
        if not self.too_little:
            return line
        bad, of = len(self.too_little), len(self.by_class)
        return (
            f"{line}. It IGNORES ITS NOISE in {bad} of {of} classes (below {TOO_LITTLE}), so that matching noise to images will "
            "not help: train longer, or with --objective imle instead of gan"
        )


@torch.no_grad()
def diversity(generator: OneStepGenerator, classes: Sequence[str], images: Sequence[Tensor]) -> Diversity:
    """Compare samples with images of the data: of each class at most S, (S, c, Y, X), on the generator's own scale.

    The noises are the same in every run. A class with one image, or with equal ones, has no distance to compare with.
    """
    found = {}
    for name, real in zip(classes, images, strict=True):
        noise = generator.base_noise([noise_seed(0, "diversity", name, i) for i in range(len(real))])
        made = generator.denoise(noise, generator.encode_prompts([name] * len(real))).clamp(-1, 1)
        apart = mean_distance(real)
        if apart > 0:
            found[name] = mean_distance(made) / apart
    return Diversity(found)


def mean_distance(images: Tensor) -> float:
    """Mean root-mean-square distance over all pairs of images (S, c, Y, X); 0 of fewer than two."""
    if len(images) < 2:
        return 0.0
    flat = to_float64(images.flatten(1))
    return float(torch.pdist(flat).mean() / flat.shape[1] ** 0.5)
