"""Small one-step generators of labelled images: noise and a class to pixels, by convolutions, without an autoencoder.

A folder contains `config.json` (see `ClassConfig`) and `network.safetensors`. A prompt is the name of a class, or its number.

Axes: B images, K classes, C × H × W the noise map (a flat noise of n numbers is n × 1 × 1), c × Y × X the image (c is 1 or 3),
E features of the condition, g × g the coarsest grid of features.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ortho_core.class_names import class_number
from ortho_core.device import to_device
from ortho_core.errors import UserError
from ortho_core.generators.class_config import GROUPS, ClassConfig
from ortho_core.generators.model_folder import CLASS_CONFIG, CLASS_WEIGHTS, ModelFolder
from ortho_core.generators.precision import run_network
from ortho_core.generators.protocol import Condition
from ortho_core.noise.seeded import seeded_normal
from ortho_core.storage.folders import replace_folder


class Block(nn.Module):
    """Two convolutions around a projection, the first scaled and shifted by the condition (FiLM, Perez et al. 2018)."""

    def __init__(self, enter: int, channels: int, condition: int) -> None:
        super().__init__()
        self.norm, self.film = nn.GroupNorm(GROUPS, enter), nn.Linear(condition, 2 * enter)
        self.first = nn.Conv2d(enter, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(enter, channels, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        y = self.first(F.silu(self.norm(x) * (1 + scale) + shift))
        return self.skip(x) + self.second(F.silu(y))


class ClassNetwork(nn.Module):
    """Noise (B, C, H, W) and classes (B, K), one-hot, to images (B, c, Y, X), nominally in [-1, 1]."""

    def __init__(self, config: ClassConfig) -> None:
        super().__init__()
        self.config = config
        C, widths, E = config.noise_shape[0], config.widths, config.condition
        rows, columns = config.grid
        self.classes = nn.Linear(len(config.classes), E)
        if config.flat:
            self.enter: nn.Module = nn.Sequential(
                nn.Flatten(), nn.Linear(C, widths[0] * rows * columns), nn.Unflatten(1, (widths[0], rows, columns))
            )
            self.styles: nn.Module | None = nn.Linear(C, E)
        else:
            self.enter, self.styles = nn.Conv2d(C, widths[0], 3, padding=1), None
        before = [widths[0], *widths[:-1]]
        self.blocks = nn.ModuleList(Block(a, b, E) for a, b in zip(before, widths, strict=True))
        self.leave = nn.Sequential(
            nn.Conv2d(widths[-1], 4 * config.image_shape[0], 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, noise: Tensor, classes: Tensor) -> Tensor:
        condition = self.classes(classes)
        if self.styles is not None:
            condition = condition + self.styles(noise.flatten(1))
        condition = F.silu(condition)
        x = self.enter(noise)
        for number, block in enumerate(self.blocks):
            x = block(F.interpolate(x, scale_factor=2.0, mode="nearest") if number > 1 else x, condition)
        image: Tensor = self.leave(F.silu(x))
        _, Y, X = self.config.image_shape
        top, left = (image.shape[-2] - Y) // 2, (image.shape[-1] - X) // 2
        return image[..., top : top + Y, left : left + X].contiguous()


class ClassGenerator:
    """A `OneStepGenerator` whose latent is the image itself in [-1, 1], grey with one channel."""

    loaded_fingerprint: str | None = None

    def __init__(self, config: ClassConfig, network: ClassNetwork) -> None:
        self.config, self.network = config, network
        self.trainable: nn.Module = network
        self.latent_shape, self.image_size = config.noise_shape, config.image_shape[1:]

    @staticmethod
    def load(folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> "ClassGenerator":
        """Load a class-conditional folder, frozen. Raises UserError, naming the file, for broken weights."""
        config, file = folder.class_config, folder.path / CLASS_WEIGHTS
        assert config is not None
        network = ClassNetwork(config)
        try:
            network.load_state_dict(load_file(file))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(f"{file} does not fit {CLASS_CONFIG} beside it: {str(error).splitlines()[0]}") from error
        network.requires_grad_(False).eval()
        return ClassGenerator(config, network.to(device, dtype))

    @property
    def device(self) -> torch.device:
        return self._parameter.device

    @property
    def _parameter(self) -> Tensor:
        return next(self.network.parameters())

    def base_noise(self, seeds: list[int]) -> Tensor:
        return to_device(seeded_normal(seeds, self.latent_shape), self.device)

    def encode_prompts(self, prompts: list[str]) -> Condition:
        """One-hot rows for names or numbers of classes. The empty prompt, which pads batches, gives a row of zeros.

        Raises BadRow for any other text.
        """
        rows = torch.zeros(len(prompts), len(self.config.classes))
        for row, prompt in zip(rows, prompts, strict=True):
            if prompt:
                row[class_number(prompt, self.config.classes)] = 1.0
        return Condition({"classes": to_device(rows, self.device)})

    def count_truncated(self, prompts: list[str]) -> int:
        return 0

    def encode_images(self, images: Tensor) -> Tensor:
        images = images.to(self.device, torch.float32)
        grey = self.config.image_shape[0] == 1
        return (images.mean(1, keepdim=True) if grey else images) * 2 - 1

    def denoise(self, noise: Tensor, condition: Condition) -> Tensor:
        dtype = self._parameter.dtype
        classes = condition.tensors["classes"].to(dtype)
        return run_network(lambda x: self.trainable(x, classes), noise, dtype)

    def decode(self, latents: Tensor) -> Tensor:
        return (latents / 2 + 0.5).expand(-1, 3, -1, -1)

    def park(self, *, text: bool = False, autoencoder: bool = False) -> None:
        """Nothing to do: the model has no other part than its network."""

    def save(self, folder: str | Path, card: str | None = None, *, single_file: bool = False) -> None:
        """Write a model folder; `card` becomes its README.md. `single_file` adds nothing: the weights are one file already."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}

        def write(aside: Path) -> None:
            aside.mkdir(parents=True)
            (aside / CLASS_CONFIG).write_text(self.config.model_dump_json(indent=1) + "\n", encoding="utf-8")
            save_file(weights, aside / CLASS_WEIGHTS)
            if card is not None:
                (aside / "README.md").write_text(card, encoding="utf-8")

        replace_folder(Path(folder), write)
