"""Train tiny-clip, `python -m models.recipes.clip --mnist DIR --out DIR`, or measure it with `--evaluate`.

A small `CLIPModel` for 32 × 32 coloured digits. There are only 200 captions, so every batch of images is compared with all
of them: cross-entropy over the captions for each image, and over the batch for each caption, whose target is shared by its
images. Images are augmented (bent, shifted, blurred, noise added), so that the soft strokes of a generator are recognised too.
Axes: B images, C = 200 captions, H = W = 32.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from torchvision.transforms.functional import pil_to_tensor
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer, CLIPVisionConfig

from models.recipes.digits import COLOURS, DIGITS, SIZE, ColouredDigits, caption
from models.recipes.loop import Average
from models.recipes.loop import train as fit
from models.recipes.text import build_tokenizer, text_config
from ortho_core.evaluation.samples import sample
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.noise.seeded import noise_seed

#: All captions; those of one colour pair are `len(COLOURS)` apart, in the order of the digits.
CAPTIONS = [caption(digit, *colour) for digit in range(len(DIGITS)) for colour in COLOURS]
INDEX = {text: i for i, text in enumerate(CAPTIONS)}


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    text = text_config(tokenizer, 48)
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=SIZE,
        patch_size=8,
    )
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64))


def augment(images: Tensor, rng: torch.Generator, strength: float) -> Tensor:
    """Turn, scale, shift, blur, tint and add noise to images (B, 3, H, W), each differently, at most by `strength` in [0, 1]."""

    def spread(width: float, *shape: int) -> Tensor:
        return (torch.rand(len(images), *shape, generator=rng) * 2 - 1) * width * strength

    angle, scale = spread(0.12), 1 + spread(0.12)
    theta = torch.stack([scale * angle.cos(), -scale * angle.sin(), scale * angle.sin(), scale * angle.cos()], dim=1)
    theta = torch.cat([theta.view(-1, 2, 2), spread(2 * 2 / SIZE, 2, 1)], dim=2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    # The border is only paper, so repeating it looks like a larger sheet.
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    images = torch.lerp(images, soft, spread(1.0, 1, 1, 1).clamp(min=0))
    noise = torch.randn(images.shape, generator=rng) * spread(0.08, 1, 1, 1)
    return (images + noise + spread(0.05, 3, 1, 1)).clamp(0, 1)


def text_features(model: CLIPModel, tokenizer: CLIPTokenizer) -> Tensor:
    """Unit text embeddings (C, d) of all captions."""
    tokens = tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    return F.normalize(model.text_projection(model.text_model(**tokens).pooler_output), dim=-1)


def image_features(model: CLIPModel, pixels: Tensor) -> Tensor:
    """Unit image embeddings (B, d) of normalised pixels (B, 3, H, W)."""
    return F.normalize(model.visual_projection(model.vision_model(pixels).pooler_output), dim=-1)


def train(args: argparse.Namespace) -> None:
    tokenizer = build_tokenizer(args.out)
    processor = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (processor.image_mean, processor.image_std))
    model = (CLIPModel.from_pretrained(args.init) if args.init else build(tokenizer)).train()
    parameters = list(model.parameters())
    # Muon optimises the matrices of the transformers' layers, AdamW all other weights.
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    others = [p for n, p in model.named_parameters() if not (p.ndim == 2 and ".layers." in n)]
    optimizers = (
        torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0),
    )
    data = ColouredDigits(args.mnist, "train", seed=24 if args.init else 21, restyled=True)
    rng = torch.Generator().manual_seed(22)
    tokenizer.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    for name in ("vocab.json", "merges.txt"):  # tokenizer.json has the same content
        (args.out / name).unlink(missing_ok=True)

    def loss_at(step: int) -> tuple[Tensor, str]:
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)  # a factor of 100, CLIP's own limit
        # Plain digits of one ink first, then more variation: shapes are learned late if everything varies from the start.
        grown = 1 if args.init else min(max(step / args.steps - 0.1, 0) / 0.3, 1)
        data.restyled = grown > 0
        images, captions, _, _ = data.draw(args.batch, 1 + round(grown * (len(COLOURS) - 1)))
        wanted = torch.tensor([INDEX[c] for c in captions]).unsqueeze(1)
        pixels = (augment(images, rng, grown) - mean) / std
        logits = model.logit_scale.exp() * image_features(model, pixels) @ text_features(model, tokenizer).T
        return -(
            logits.log_softmax(1).gather(1, wanted).mean() + logits.log_softmax(0).gather(1, wanted).mean()
        ) / 2, ""

    schedules = [
        OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.03, cycle_momentum=False) for optimizer in optimizers
    ]
    average = Average(0.998, lambda: model.save_pretrained(args.out))
    fit(parameters, optimizers, schedules, args.steps, loss_at, name="clip", clip=1.0, average=average)


@torch.no_grad()
def zero_shot(folder: Path, images: Tensor, captions: list[str]) -> dict[str, float]:
    """Shares of images (B, 3, H, W), in [0, 1], whose caption scores best among the ten of its colours, and among all."""
    model, processor = CLIPModel.from_pretrained(folder).eval(), CLIPImageProcessor.from_pretrained(folder)
    texts = text_features(model, CLIPTokenizer.from_pretrained(folder))
    pixels = processor(list(images.mul(255).round().byte()), return_tensors="pt")["pixel_values"]
    scores = torch.cat([image_features(model, p) @ texts.T for p in pixels.split(500)])
    wanted = torch.tensor([INDEX[c] for c in captions])
    digit, colour = wanted // len(COLOURS), wanted % len(COLOURS)
    ten = scores.view(-1, len(DIGITS), len(COLOURS))[torch.arange(len(wanted)), :, colour]
    best = scores.argmax(1)
    shares = {
        "among_ten": ten.argmax(1) == digit,
        "among_all": best == wanted,
        "among_all_digit": best // len(COLOURS) == digit,
        "among_all_colours": best % len(COLOURS) == colour,
    }
    return {"images": len(images)} | {name: float(share.float().mean()) for name, share in shares.items()}


def read_pairs(file: Path) -> tuple[Tensor, list[str]]:
    """Images (B, 3, H, W) in [0, 1] and captions of a JSON-lines pair file."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    images = [pil_to_tensor(Image.open(file.parent / row["image"]).convert("RGB")) for row in rows]
    return torch.stack(images).float() / 255, [row["prompt"] for row in rows]


def evaluate(args: argparse.Namespace) -> None:
    images, captions, _, _ = ColouredDigits(args.mnist, "t10k", seed=23).draw(10_000)
    report = {"mnist_test": zero_shot(args.evaluate, images, captions)}
    for name in ("pairs", "heldout"):
        report[f"examples_{name}"] = zero_shot(args.evaluate, *read_pairs(args.pairs / f"{name}.jsonl"))
    generator = load_generator(ModelFolder.open(args.turbo))
    texts = CAPTIONS * 8
    fakes = sample(generator, PromptCache(generator), texts, [noise_seed(0, "clip", i) for i in range(len(texts))], 50)
    report["turbo_samples"] = zero_shot(args.evaluate, fakes.float() / 255, texts)
    print(json.dumps(report, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, required=True, help="folder with the four IDX files")
    parser.add_argument("--out", type=Path, help="where to train to")
    parser.add_argument("--init", type=Path, help="a folder of an earlier run to continue from")
    parser.add_argument("--evaluate", type=Path, help="a trained folder to measure instead")
    parser.add_argument("--pairs", type=Path, default=Path("examples/digits"), help="pairs measured by --evaluate")
    parser.add_argument("--turbo", type=Path, default=Path("models/tiny-turbo"), help="generator measured with it")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--lr", type=float, default=2.5e-3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if (args.out is None) == (args.evaluate is None):
        parser.error("give either --out or --evaluate")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    evaluate(args) if args.evaluate else train(args)


if __name__ == "__main__":
    main()
