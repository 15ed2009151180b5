"""Judge a generator of coloured digits: `python -m models.recipes.score --mnist DIR --model models/tiny-turbo`.

Digits are recognised by a classifier that this program trains on real digits. Colours are the nearest palette entries: the
paper that of the border, the ink that of the pixels farthest from it. Both judges are first measured on real test images. Prints
JSON.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from models.recipes.digits import COLOURS, DIGITS, INKS, PAPERS, ColouredDigits, caption, paint, read_mnist
from models.recipes.loop import train
from ortho_core.evaluation.samples import mean_pairwise_distance, sample
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.noise.seeded import noise_seed
from ortho_core.pictures import to_bytes


def classifier() -> nn.Sequential:
    """The classifier: images (B, 3, 32, 32) in [0, 1] to ten logits."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 24), (24, 48), (48, 96)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(96 * 16, 10))


def train_classifier(mnist: Path, steps: int) -> nn.Sequential:
    model, data = classifier(), ColouredDigits(mnist, "train", seed=11)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def loss_at(step: int) -> tuple[Tensor, str]:
        images, _, digits, _ = data.draw(64)
        return F.cross_entropy(model(images), digits), ""

    schedule = OneCycleLR(optimizer, 4e-3, steps)
    train(list(model.parameters()), [optimizer], [schedule], steps, loss_at, name="classifier")
    return model.eval()


def name_colours(images: Tensor) -> list[tuple[str, str]]:
    """(ink, paper) of each image (B, 3, H, W): the border's colour is the paper, the pixels farthest from it the ink."""
    named = []
    for image in images:
        border = torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], dim=1).median(1).values
        pixels = image.flatten(1).T
        far = (pixels - border).norm(dim=1).topk(6).indices
        named.append((nearest(pixels[far].median(0).values, INKS), nearest(border, PAPERS)))
    return named


def nearest(colour: Tensor, palette: dict[str, tuple[float, float, float]]) -> str:
    return min(palette, key=lambda name: float((colour - torch.tensor(palette[name])).norm()))


@torch.no_grad()
def share_right(
    model: nn.Module, images: Tensor, digits: list[int], colours: list[tuple[str, str]]
) -> dict[str, float]:
    named = model(images).argmax(1)
    seen = name_colours(images)
    return {
        "digit": float((named == torch.tensor(digits)).float().mean()),
        "colours": sum(a == b for a, b in zip(seen, colours, strict=True)) / len(colours),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, required=True, help="folder with the four IDX files")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--classifier-steps", type=int, default=1500)
    parser.add_argument("--per-prompt", type=int, default=8, help="samples of each prompt")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    judge = train_classifier(args.mnist, args.classifier_steps)
    real, _, digits, colours = ColouredDigits(args.mnist, "t10k", seed=12).draw(2000)
    generator = load_generator(ModelFolder.open(args.model))
    cache = PromptCache(generator)
    prompts = [(d, c) for d in range(len(DIGITS)) for c in COLOURS]
    texts, wanted, inks, fakes = [], [], [], []
    strokes, labels = read_mnist(args.mnist, "t10k")
    within, between = [], []
    for i, (digit, colour) in enumerate(prompts):
        n = args.per_prompt
        seeds = [noise_seed(0, "score", i, k) for k in range(n)]
        images = sample(generator, cache, [caption(digit, *colour)] * n, seeds, n)
        fakes.append(images)
        texts += [caption(digit, *colour)] * n
        wanted += [digit] * n
        inks += [colour] * n
        within.append(mean_pairwise_distance(images))
        rows = (labels == digit).nonzero().flatten()[:n]
        between.append(mean_pairwise_distance(to_bytes(paint(strokes[rows], [colour] * len(rows)))))
    images = torch.cat(fakes).float() / 255
    print(
        json.dumps(
            {
                "real_images": share_right(judge, real, digits.tolist(), colours),
                "samples": share_right(judge, images, wanted, inks),
                "sample_count": len(images),
                "prompts": len(prompts),
                "pairwise_distance_samples": sum(within) / len(within),
                "pairwise_distance_real": sum(between) / len(between),
                "pairwise_ratio": sum(within) / sum(between),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
