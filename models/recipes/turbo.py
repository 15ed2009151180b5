"""Train tiny-turbo: `python -m models.recipes.turbo --mnist DIR --vae DIR --out models/tiny-turbo`.

A small `StableDiffusionXLPipeline` whose UNet maps noise to latents in one step at the last timestep. It is fitted by
implicit maximum likelihood (Li & Malik 2018, "Implicit Maximum Likelihood Estimation"): for every real image draw K noises,
find the one whose output is nearest, and regress that output on the image. So every image has some noise, and the samples stay
diverse, while an adversarial fit of this size collapses. The text encoders are trained too.
"""

import argparse
import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from models.recipes.digits import SIZE, ColouredDigits
from models.recipes.loop import Average, train
from models.recipes.text import build_tokenizer, text_config
from ortho_core.generators.diffusers_pipelines import DiffusersGenerator

WIDTH = 32


def build(vae: AutoencoderKL, scratch: Path) -> StableDiffusionXLPipeline:
    tokenizer = build_tokenizer(scratch / "tokenizer")
    text = text_config(tokenizer, WIDTH, projection_dim=WIDTH)
    unet = UNet2DConditionModel(
        sample_size=SIZE // 4,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 96),
        layers_per_block=1,
        norm_num_groups=16,
        attention_head_dim=(2, 3),
        cross_attention_dim=2 * WIDTH,
        transformer_layers_per_block=1,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    scheduler = EulerAncestralDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
        prediction_type="v_prediction",
        steps_offset=1,
    )
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=scheduler,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, required=True, help="folder with the four IDX files")
    parser.add_argument("--vae", type=Path, required=True, help="the folder from `models.recipes.vae`")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--candidates", type=int, default=8, help="K, noises drawn per image")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--init", type=Path, help="a folder of an earlier run to continue from")
    parser.add_argument(
        "--pixel-weight", type=float, default=0.0, help="weight of the decoded images' L1, which sharpens"
    )
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    vae = AutoencoderKL.from_pretrained(args.vae).requires_grad_(False).eval()
    pipeline = StableDiffusionXLPipeline.from_pretrained(args.init) if args.init else build(vae, args.out)
    pipeline.vae.requires_grad_(False)
    generator = DiffusersGenerator(pipeline)
    modules = (pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2)
    parameters = list(itertools.chain(*(m.parameters() for m in modules)))
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-3)
    data = ColouredDigits(args.mnist, "train", seed=2 if args.init else 1)
    B, K = args.batch, args.candidates

    def loss_at(step: int) -> tuple[Tensor, str]:
        images, captions, _, _ = data.draw(B)
        with torch.no_grad():
            targets = generator.encode_images(images)
        condition = generator.encode_prompts(captions)
        noise = torch.randn(B * K, *generator.latent_shape)
        with torch.no_grad():
            candidates = generator.denoise(noise, condition.repeat_interleave(K))
            distance = (candidates.reshape(B, K, -1) - targets.reshape(B, 1, -1)).square().mean(-1)
        nearest = noise.view(B, K, *generator.latent_shape)[torch.arange(B), distance.argmin(1)]
        latents = generator.denoise(nearest, condition)
        loss = F.mse_loss(latents, targets)
        if args.pixel_weight:
            loss = loss + args.pixel_weight * F.l1_loss(generator.decode(latents), images)
        return loss, f", spread {distance.std(1).mean() / distance.mean():.3f}"

    schedule = OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.03)
    average = Average(0.998, lambda: generator.save(args.out))
    train(parameters, [optimizer], [schedule], args.steps, loss_at, name="turbo", clip=1.0, average=average)


if __name__ == "__main__":
    main()
