"""Train the VAE of tiny-turbo: `python -m models.recipes.vae --mnist DIR --out DIR`.

An `AutoencoderKL` from 3×32×32 to 4×8×8, trained on coloured digits of every slant and stroke weight, since an autoencoder
should know more images than the generator. The scaling factor is the reciprocal of the latents' standard deviation, as in SDXL.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from models.recipes.digits import SIZE, ColouredDigits
from models.recipes.loop import train


def build() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        scaling_factor=1.0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mnist", type=Path, required=True, help="folder with the four IDX files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    vae, data = build(), ColouredDigits(args.mnist, "train", seed=0, restyled=True)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-3)

    def loss_at(step: int) -> tuple[Tensor, str]:
        images = data.draw(args.batch)[0] * 2 - 1
        posterior = vae.encode(images).latent_dist
        latents = posterior.sample()
        # A little extra noise makes the decoder smooth around the latents, where the generator will land.
        decoded = vae.decode(latents + 0.05 * torch.randn_like(latents)).sample
        l1 = F.l1_loss(decoded, images)
        loss = l1 + 2 * F.mse_loss(decoded, images) + 1e-3 * posterior.kl().mean() / 256
        return loss, f", pixel L1 {l1.item() / 2:.4f}"

    schedule = OneCycleLR(optimizer, 2e-3, args.steps, pct_start=0.05)
    train(list(vae.parameters()), [optimizer], [schedule], args.steps, loss_at, name="vae", clip=1.0)
    with torch.no_grad():
        latents = torch.cat([vae.encode(data.draw(64)[0] * 2 - 1).latent_dist.mean for _ in range(16)])
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    print(f"scaling factor {vae.config.scaling_factor}, channel means {latents.mean((0, 2, 3)).tolist()}")
    vae.save_pretrained(args.out)


if __name__ == "__main__":
    main()
