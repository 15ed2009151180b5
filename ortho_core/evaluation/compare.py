"""The distance between two sets of images, as one call."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ortho_core.at_once import AtOnce
from ortho_core.device import pick_device
from ortho_core.errors import UserError
from ortho_core.evaluation.features import find_features
from ortho_core.evaluation.metrics import Estimate
from ortho_core.evaluation.statistics import FEWEST_ROWS, kid, resamples
from ortho_core.pictures import to_bytes


def kid_between(
    images: Float[Tensor, "B 3 Y X"],
    references: Float[Tensor, "R 3 Y X"],
    features: str | Path = "tiny-clip",
    *,
    device: str = "auto",
    batch_size: int = 32,
) -> Estimate:
    """The kernel inception distance of images from references, with its 95 % interval; lower is closer, 0 is the same set.

    Both sets are float32 in [0, 1], (B, 3, Y, X), and have equally many images. Row b of both has the same prompt. `features`
    is `tiny-clip`, which is installed with this package, or a folder of a CLIP or other vision model in transformers' format.
    Values of different features cannot be compared. `device` computes the features (`auto`: a GPU if there is one).

    Raises UserError for fewer than 8 images, sets of different sizes, and features that cannot be loaded.
    """
    if len(images) != len(references) or len(images) < FEWEST_ROWS:
        raise UserError(
            f"{len(images)} images and {len(references)} references: give equally many, {FEWEST_ROWS} at least"
        )
    device = pick_device(device)
    extract = find_features(str(features), Path()).load(device, {})

    def features_of(every: Tensor) -> np.ndarray:
        # Rounded to uint8 values, as a viewer sees the images.
        seen = to_bytes(every).float() / 255
        with torch.no_grad():
            return torch.cat(AtOnce(batch_size)(len(seen), lambda part: extract(seen[part].to(device)).cpu())).numpy()

    return kid(features_of(images), features_of(references), resamples(len(images), 0))
