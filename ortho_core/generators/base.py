"""The base class for your own generators, and the checks that a generator fits the `OneStepGenerator` protocol.

Axes: B images, C × H × W the noise map, c × h × w the latent, 3 × Y × X the image.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ortho_core.device import to_device
from ortho_core.errors import UserError
from ortho_core.framing.image_size import text_of
from ortho_core.generators.protocol import Condition, OneStepGenerator
from ortho_core.noise.seeded import seeded_normal
from ortho_core.storage.folders import replace_folder

#: The file of weights that `BaseGenerator.save` writes.
NETWORK_FILE = "network.safetensors"


class BaseGenerator:
    """A `OneStepGenerator` around your network; override the methods in which your model differs.

    By default the model is unconditional, its latent is the image itself in [-1, 1], and one step is `network(noise)`: noise
    (B, C, H, W) float32 to images (B, 3, Y, X). A model with prompts overrides `encode_prompts` and `denoise`; one with an
    autoencoder overrides `encode_images` and `decode`.
    """

    loaded_fingerprint: str | None = None

    def __init__(self, network: nn.Module, latent_shape: tuple[int, int, int], image_size: tuple[int, int]) -> None:
        """`latent_shape` is (C, H, W) of the noise map, `image_size` is (Y, X). The network stays frozen until training."""
        self.network = network.requires_grad_(False).eval()
        self.trainable: nn.Module = network
        self.latent_shape, self.image_size = latent_shape, image_size

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.network.parameters()).device

    def base_noise(self, seeds: list[int]) -> Tensor:
        """ε ~ N(0, I), (B, C, H, W) float32; row b depends only on seeds[b]."""
        return to_device(seeded_normal(seeds, self.latent_shape), self.device)

    def encode_prompts(self, prompts: list[str]) -> Condition:
        """One row per prompt. By default a column of zeros, which the model ignores."""
        return Condition({"nothing": torch.zeros(len(prompts), 1, device=self.device)})

    def count_truncated(self, prompts: list[str]) -> int:
        """Number of prompts that are truncated. By default none."""
        return 0

    def encode_images(self, images: Tensor) -> Tensor:
        """E(x): target latents (B, c, h, w) float32 of images (B, 3, Y, X) in [0, 1]. By default the images in [-1, 1]."""
        return images.to(self.device, torch.float32) * 2 - 1

    def denoise(self, noise: Tensor, condition: Condition) -> Tensor:
        """f(ε, c): one step from noise (B, C, H, W) to latents (B, c, h, w) float32. Calls `trainable`, not `network`."""
        latents: Tensor = self.trainable(noise)
        return latents.float()

    def decode(self, latents: Tensor) -> Tensor:
        """D(z): images (B, 3, Y, X), nominally in [0, 1] and not clamped. The inverse of `encode_images`."""
        return latents / 2 + 0.5

    def park(self, *, text: bool = False, autoencoder: bool = False) -> None:
        """Nothing to do: by default no part leaves the device."""

    def save(self, folder: str | Path, card: str | None = None, *, single_file: bool = False) -> None:
        """Write the network's weights to `network.safetensors` in the folder, for `load_state_dict`; `card` to README.md.

        `load_generator` does not read such a folder: make your generator, then load the weights into its network.
        """
        weights = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}

        def write(aside: Path) -> None:
            aside.mkdir(parents=True)
            save_file(weights, aside / NETWORK_FILE)
            if card is not None:
                (aside / "README.md").write_text(card, encoding="utf-8")

        replace_folder(Path(folder), write)


def at_size(generator: OneStepGenerator, size: tuple[int, int]) -> OneStepGenerator:
    """The generator for images of another size (Y, X): a view with the same weights, and the same `trainable` as now.

    Raises UserError for a size that it does not make. A generator of yours makes other sizes if it has a method `at(size)`.
    """
    if tuple(size) == tuple(generator.image_size):
        return generator
    if not hasattr(generator, "at"):
        own = text_of(generator.image_size)
        raise UserError(f"{type(generator).__name__} makes only images of {own}, not {text_of(size)}")
    view: OneStepGenerator = generator.at(size)
    return view


def check_generator(generator: object) -> None:
    """Raises UserError, naming the missing attributes, if `generator` is not a `OneStepGenerator`."""
    if isinstance(generator, str | Path):
        raise UserError(f"{generator} is a path, not a generator: load it with load_generator({str(generator)!r})")
    if isinstance(generator, OneStepGenerator):
        return
    needed = [name for name in dir(OneStepGenerator) if not name.startswith("_")] + [*OneStepGenerator.__annotations__]
    lacking = sorted({name for name in needed if not hasattr(generator, name)})
    raise UserError(
        f"{type(generator).__name__} is not a one-step generator, it has no {', '.join(lacking)}: inherit from "
        "ortho_core.BaseGenerator and override the methods in which your model differs"
    )


@torch.no_grad()
def check_latents(generator: OneStepGenerator, condition: Condition, target_latents: Tensor) -> None:
    """Raises UserError if `denoise` and `encode_images` of a user-defined generator give latents of different shapes."""
    if generator.loaded_fingerprint is not None:
        return
    made = tuple(generator.denoise(generator.base_noise([0]), condition[:1]).shape[1:])
    if made != tuple(target_latents.shape[1:]):
        raise UserError(
            f"{type(generator).__name__}: denoise makes latents of shape {made}, encode_images makes "
            f"{tuple(target_latents.shape[1:])}; both must be the same"
        )
