"""What the eye sees of the hand that is learned: how far it leans, and how bold it is.

The targets lean by a shear of .35 to .45 and their strokes are dilated, so both are known to be learned or not without a judge.

Axes: n images, c × Y × X pixels.
"""

import numpy as np
import torch
from torch import Tensor


def slant(images: Tensor) -> np.ndarray:
    """(n,) of images (n, c, Y, X) uint8: the shear in pixels per pixel, negative where the top leans to the right.

    An image I(x - s·y, y), sheared by s, has the gradients (g_x, g_y - s·g_x) of I's, so -Σ g_x·g_y / Σ g_x² is s where those of
    I are uncorrelated; what is ink and what is paper plays no part. NaN for a flat image.
    """
    grey = images.double().mean(1)
    g_x = (grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]) / 2
    g_y = (grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]) / 2
    return (-(g_x * g_y).sum((1, 2)) / g_x.square().sum((1, 2))).numpy()


def ink(images: Tensor) -> np.ndarray:
    """(n,) of images (n, c, Y, X) uint8: the mean distance of a pixel from the paper, on the scale [0, 1].

    The paper is the median of the outermost pixels, in each channel.
    """
    pixels = images.double() / 255
    edge = torch.cat([pixels[:, :, 0], pixels[:, :, -1], pixels[:, :, 1:-1, 0], pixels[:, :, 1:-1, -1]], -1)
    paper = edge.median(-1).values[:, :, None, None]
    return (pixels - paper).abs().mean((1, 2, 3)).numpy()


def brightness(images: Tensor) -> np.ndarray:
    """(n,) of images (n, c, Y, X) uint8: the mean pixel on the scale [0, 1]; dilated photographs are brighter."""
    return (images.double().mean((1, 2, 3)) / 255).numpy()


MEASURES = {"slant": slant, "ink": ink, "brightness": brightness}
