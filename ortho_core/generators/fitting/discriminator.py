"""The discriminator of a class-conditional GAN.

Axes: B images, c × Y × X, K classes, F features.
"""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

#: Channels at full, half and quarter size.
WIDTHS = (32, 64, 96)


class Discriminator(nn.Module):
    """Images (B, c, Y, X) in [-1, 1] and classes (B, K), one-hot, to scores (B,): v·φ(x) + e_class·φ(x) (Miyato & Koyama 2018).

    Each layer has spectral norm 1 (Miyato et al. 2018); there is no other regularisation.
    """

    def __init__(self, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        full, half, quarter = WIDTHS
        layers: list[nn.Module] = [
            nn.Conv2d(image_shape[0], full, 3, padding=1),
            nn.Conv2d(full, half, 4, stride=2, padding=1),
            nn.Conv2d(half, half, 3, padding=1),
            nn.Conv2d(half, quarter, 4, stride=2, padding=1),
            nn.Conv2d(quarter, quarter, 3, padding=1),
        ]
        self.layers = nn.ModuleList(spectral_norm(layer) for layer in layers)
        self.score = spectral_norm(nn.Linear(quarter, 1))
        self.classes = spectral_norm(nn.Linear(classes, quarter, bias=False))

    def forward(self, images: Tensor, classes: Tensor) -> Tensor:
        x = images
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        features = x.sum((2, 3))
        scores: Tensor = self.score(features)[:, 0] + (self.classes(classes) * features).sum(1)
        return scores
