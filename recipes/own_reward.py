"""A reward of your own: find the noise with the highest reward."""

# %%
from pathlib import Path

from torch import Tensor

from ortho_core import SearchConfig, generate_images, labelled_rows, load_generator, raise_reward

MODEL, PROMPT, SEEDS = "models/tiny-turbo", "a green handwritten two on a black background", range(4)


# Your own reward: one number per image, computed with PyTorch's operations, so that it has a gradient.
def left_half(images: Tensor) -> Tensor:
    """How much brighter the left half is: images (B, 3, Y, X) in [0, 1] to (B,)."""
    left, right = images.mean((1, 2)).chunk(2, dim=1)
    return left.mean(1) - right.mean(1)


generator = load_generator(MODEL, device="auto")

# %%
found = raise_reward(generator, left_half, PROMPT, SearchConfig(steps=20, patch_size=4), seeds=SEEDS)
for seed, start, end in zip(found.seeds, found.initial_terms["left_half"], found.terms["left_half"], strict=True):
    print(f"seed {seed}: {start:.3f} → {end:.3f}")

# %%
before = generate_images(generator, PROMPT, seeds=SEEDS)
picture = labelled_rows({"base noise": before, "highest reward": found.images}, scale=2)
Path("runs").mkdir(exist_ok=True)
picture.save("runs/own_reward.png")
picture
