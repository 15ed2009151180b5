"""The judge of a data set: a small classifier trained on its real images, whose features KID and FID are made of.

It is saved as a vision model of transformers, which is what `ortho evaluate --features FOLDER` takes.

Axes: n images, B of a batch, c × Y × X pixels, D features.
"""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from transformers import RegNetConfig, RegNetForImageClassification, ViTImageProcessor

from models.recipes.loop import train
from ortho_core.storage.folders import replace_folder

#: Features, few enough that a Fréchet distance of 512 images is one.
D = 64
BATCH, LR = 128, 2e-3


def train_classifier(
    images: np.ndarray, labels: np.ndarray, test: tuple[np.ndarray, np.ndarray], epochs: int, folder: Path
) -> None:
    """Train on images (n, c, Y, X) uint8 and save the model with its accuracy on `test`; at once if it is there."""
    if folder.is_dir():
        return
    torch.manual_seed(0)
    classes, size = int(labels.max()) + 1, images.shape[-1]
    config = RegNetConfig(
        embedding_size=32,
        hidden_sizes=[64, 128, D],
        depths=[1, 1, 1],
        groups_width=16,
        layer_type="x",
        num_labels=classes,
    )
    model = RegNetForImageClassification(config).to(memory_format=torch.channels_last)
    each = len(images) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=1e-2)
    rng = torch.Generator().manual_seed(0)
    orders: list[Tensor] = []

    def loss_at(step: int) -> tuple[Tensor, str]:
        place = step % each
        if place == 0:
            orders.append(torch.randperm(len(images), generator=rng))
        index = orders[-1][place * BATCH : (place + 1) * BATCH]
        pixels = jitter(as_input(images[index]), rng)
        return F.cross_entropy(model(pixels).logits, torch.from_numpy(labels[index]).long(), label_smoothing=0.1), ""

    schedule = OneCycleLR(optimizer, LR, epochs * each)
    train(list(model.parameters()), [optimizer], [schedule], epochs * each, loss_at, name="classifier")
    model.eval()
    about = {"accuracy": accuracy(model, *test), "images": len(images), "epochs": epochs, "classes": classes}
    processor = ViTImageProcessor(size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.5] * 3)

    def write(aside: Path) -> None:
        model.regnet.save_pretrained(aside)  # the features alone
        processor.save_pretrained(aside)
        (aside / "accuracy.json").write_text(json.dumps(about) + "\n")

    replace_folder(folder, write)
    print(f"classifier: accuracy {about['accuracy']:.4f} on {len(test[1])} test images", flush=True)


def as_input(images: np.ndarray) -> Tensor:
    """(B, c, Y, X) uint8 as the network sees it, (B, 3, Y, X) in [-1, 1]."""
    return torch.from_numpy(images).float().div(127.5).sub(1).expand(-1, 3, -1, -1)


def jitter(pixels: Tensor, rng: torch.Generator) -> Tensor:
    """Each batch moved by up to two pixels."""
    down, right = torch.randint(-2, 3, (2,), generator=rng).tolist()
    padded = F.pad(pixels, (2, 2, 2, 2), mode="replicate")
    Y, X = pixels.shape[-2:]
    return padded[..., 2 + down : 2 + down + Y, 2 + right : 2 + right + X].contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def accuracy(model: RegNetForImageClassification, images: np.ndarray, labels: np.ndarray) -> float:
    """Share of images named right."""
    named = [model(as_input(part)).logits.argmax(1).numpy() for part in np.array_split(images, -(-len(images) // 500))]
    return float((np.concatenate(named) == labels).mean())
