"""A second kind of one-step generator for benchmarks: noise and prompt to pixels, no autoencoder, no attention.

Fitted by implicit maximum likelihood (Li & Malik 2018): for every image draw K noises, regress the one whose output is
nearest. The weights in `imle/` were made by `python -m benchmarks.imle_generator` from the example digits: 1,500 steps, ten
minutes on one thread.

Axes: B images, C × H × W = 4 × 8 × 8 noise, 3 × 32 × 32 images.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from models.recipes.loop import train as fit
from ortho_core.generators.class_conditional import Block
from ortho_core.generators.protocol import Condition
from ortho_core.noise.seeded import seeded_normal
from ortho_core.pairs.decoding import to_images
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Pair

SIZE = (32, 32)
WEIGHTS = Path(__file__).parent / "imle"


class Network(nn.Module):
    """Residual blocks at 8, 8, 16 and 32 pixels, conditioned on a bag of words."""

    def __init__(self, words: int, widths: tuple[int, ...] = (64, 64, 48, 24), condition: int = 64) -> None:
        super().__init__()
        self.words = nn.Linear(words, condition)
        self.enter = nn.Conv2d(4, widths[0], 3, padding=1)
        before = [widths[0], *widths[:-1]]
        self.blocks = nn.ModuleList(Block(a, b, condition) for a, b in zip(before, widths, strict=True))
        self.leave = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, noise: Tensor, bag: Tensor) -> Tensor:
        condition = F.silu(self.words(bag))
        x = self.blocks[1](self.blocks[0](self.enter(noise), condition), condition)
        for block in self.blocks[2:]:
            x = block(F.interpolate(x, scale_factor=2.0, mode="nearest"), condition)
        return self.leave(F.silu(x))


class ImleGenerator:
    """A `OneStepGenerator` whose latent is the image itself, in [-1, 1]."""

    latent_shape = (4, 8, 8)
    image_size = SIZE
    device = torch.device("cpu")
    loaded_fingerprint: str | None = None

    def __init__(self, words: list[str]) -> None:
        self.index = {word: i for i, word in enumerate(words)}
        self.trainable: nn.Module = Network(len(words))

    def base_noise(self, seeds: list[int]) -> Tensor:
        return seeded_normal(seeds, self.latent_shape)

    def encode_prompts(self, prompts: list[str]) -> Condition:
        bag = torch.zeros(len(prompts), len(self.index))
        for row, prompt in zip(bag, prompts, strict=True):
            row[[self.index[w] for w in prompt.split() if w in self.index]] = 1.0
        return Condition({"bag": bag})

    def count_truncated(self, prompts: list[str]) -> int:
        return 0

    def encode_images(self, images: Tensor) -> Tensor:
        return images * 2 - 1

    def denoise(self, noise: Tensor, condition: Condition) -> Tensor:
        output: Tensor = self.trainable(noise, condition.tensors["bag"])
        return output

    def decode(self, latents: Tensor) -> Tensor:
        return latents / 2 + 0.5

    def park(self, *, text: bool = False, autoencoder: bool = False) -> None:
        pass

    def save(self, folder: Path, card: str | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.trainable.state_dict(), folder / "imle.safetensors")
        (folder / "words.json").write_text(json.dumps(list(self.index)))
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")


def load(folder: Path = WEIGHTS) -> ImleGenerator:
    """The generator in the repository, frozen."""
    generator = ImleGenerator(json.loads((folder / "words.json").read_text()))
    generator.trainable.load_state_dict(load_file(folder / "imle.safetensors"))
    generator.trainable.requires_grad_(False).eval()
    return generator


def train(pairs: Path, steps: int = 1500, batch: int = 24, nearest_of: int = 8) -> ImleGenerator:
    """Fit a generator to a pair set."""
    source = PairSet(pairs)
    rows = [row for shard in source.shards(64) for row in source.read(shard) if isinstance(row, Pair)]
    images = to_images(source.images(rows, SIZE)) * 2 - 1
    torch.manual_seed(0)
    generator = ImleGenerator(sorted({word for row in rows for word in row.prompt.split()}))
    network = generator.trainable
    bags = generator.encode_prompts([row.prompt for row in rows]).tensors["bag"]
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)

    def loss_at(step: int) -> tuple[Tensor, str]:
        chosen = torch.randint(len(rows), (batch,))
        x, bag = images[chosen], bags[chosen]
        noise = torch.randn(batch, nearest_of, *generator.latent_shape)
        with torch.no_grad():
            output = network(noise.flatten(0, 1), bag.repeat_interleave(nearest_of, 0)).unflatten(
                0, (batch, nearest_of)
            )
            best = (output - x[:, None]).square().flatten(2).mean(2).argmin(1)
        return (network(noise[torch.arange(batch), best], bag) - x).square().mean(), ""

    schedule = OneCycleLR(optimizer, 2e-3, steps)
    fit(list(network.parameters()), [optimizer], [schedule], steps, loss_at, name="imle")
    return generator


if __name__ == "__main__":
    train(Path("examples/digits")).save(WEIGHTS)
