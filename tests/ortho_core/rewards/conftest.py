"""Rewards with random weights in the formats of the published ones, and pictures to score."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

PROMPTS = ["a red fox in the snow", "two boats", "a very long prompt, " * 40, "a red fox in the snow"]


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    return PROMPTS


def pictures(size: tuple[int, int], count: int = 4, seed: int = 0) -> list[Image.Image]:
    """Smooth pictures with edges and some noise, (Y, X) pixels, each with other colours."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    found = []
    for _ in range(count):
        waves = [np.sin(rng.uniform(2, 20) * x + rng.uniform(2, 20) * y + rng.uniform(0, 6)) for _ in range(3)]
        values = 0.5 + 0.4 * np.stack(waves, -1) + rng.normal(0, 0.05, (*size, 3))
        top, left = rng.integers(0, size[0] // 2), rng.integers(0, size[1] // 2)
        values[top : top + size[0] // 3, left : left + size[1] // 3] = rng.integers(0, 2, 3)
        found.append(Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8)))
    return found


def tensors(images: list[Image.Image]) -> torch.Tensor:
    """(B, 3, Y, X) in [0, 1]."""
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]).float() / 255


def make_clip(folder: Path, tokenizer: Path, width: int = 32, layers: int = 2, pixels: int = 56, seed: int = 0) -> Path:
    """A CLIP folder in transformers' format, with random weights that tell pictures apart."""
    from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessor, CLIPModel

    tokens = AutoTokenizer.from_pretrained(tokenizer)
    shape = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    text = shape | {
        "num_attention_heads": 2,
        "vocab_size": len(tokens),
        "eos_token_id": tokens.eos_token_id,
        "bos_token_id": tokens.bos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }
    vision = shape | {"num_attention_heads": 4, "image_size": pixels, "patch_size": 14, "initializer_range": 1.0}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    torch.manual_seed(seed)
    CLIPModel(config).save_pretrained(folder)
    tokens.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": pixels}, crop_size=pixels).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory, tiny_turbo) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip"), tiny_turbo / "tokenizer")


def make_aesthetic(folder: Path, width: int, seed: int = 1) -> Path:
    """The published file's layout, with random weights: plain linear layers under `layers.N`."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    shapes = {0: (1024, width), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
    weights = {}
    for layer, shape in shapes.items():
        weights[f"layers.{layer}.weight"] = torch.randn(shape, generator=generator) * shape[1] ** -0.5
        weights[f"layers.{layer}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
    torch.save(weights, folder / "sac+logos+ava1-l14-linearMSE.pth")
    return folder


def directional_errors(score, images: torch.Tensor, seed: int = 0, step: float = 1e-5) -> torch.Tensor:
    """Relative errors (B,) of the gradient along a random direction against central differences, in float64."""
    images = images.double() * 0.4 + 0.3  # so that no difference steps over a clamp, where even bicubic overshoots
    direction = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(leaf).sum(), leaf)
    slope = (gradient * direction).flatten(1).sum(1)
    with torch.no_grad():
        difference = (score(images + step * direction) - score(images - step * direction)) / (2 * step)
    return (slope - difference).abs() / difference.abs()
