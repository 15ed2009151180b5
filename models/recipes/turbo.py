"""Train tiny-turbo: `python -m models.recipes.turbo --mnist DIR --vae DIR --out models/tiny-turbo`.

A `StableDiffusionXLPipeline` in miniature whose UNet maps noise to latents in one step at the last timestep. It is fitted
by implicit maximum likelihood (Li & Malik 2018, "Implicit Maximum Likelihood Estimation"): for every real image draw K
noises, find the one whose output is nearest, regress that one on the image. Every image thereby owns some noise, which
keeps the samples diverse where an adversarial fit of this size collapses. The text encoders learn along.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    EulerAncestralDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import EMAModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from models.recipes.digits import COLOURS, DIGITS, SIZE, ColouredDigits, caption
from ortho_core.generators.diffusers_pipelines import DiffusersGenerator

TOKENS = 24
WIDTH = 32


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges make one token of each word of the captions; other words fall into letters."""
    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        min_frequency=1,
        end_of_word_suffix="</w>",
        initial_alphabet=sorted("abcdefghijklmnopqrstuvwxyz0123456789.,-'!?"),
        show_progress=False,
    )
    bpe.train_from_iterator([caption(d, i, p) for d in range(len(DIGITS)) for i, p in COLOURS], trainer)
    learned = json.loads(bpe.to_str())["model"]
    letters = sorted({c for word in learned["vocab"] for c in word.removesuffix("</w>")})
    words = letters + [f"{c}</w>" for c in letters]
    words += sorted(w for w in learned["vocab"] if w not in words)
    vocab = {w: i for i, w in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    merges = [" ".join(m) if isinstance(m, list) else m for m in learned["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)
    return tokenizer


def build(vae: AutoencoderKL, scratch: Path) -> StableDiffusionXLPipeline:
    tokenizer = build_tokenizer(scratch / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
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
    parser.add_argument("--vae", type=Path, required=True, help="the folder that `models.recipes.vae` wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--candidates", type=int, default=8, help="K, noises drawn per image")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--init", type=Path, help="a folder of an earlier run to go on from")
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
    print(f"{sum(p.numel() for p in parameters):,} parameters", flush=True)
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, args.steps, pct_start=0.03)
    ema = EMAModel(parameters, decay=0.998)
    data = ColouredDigits(args.mnist, "train", seed=2 if args.init else 1)
    B, K = args.batch, args.candidates
    started, running = time.monotonic(), 0.0
    for step in range(args.steps):
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
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        ema.step(parameters)
        running += (loss.item() - running) / min(step + 1, 100)
        if step % 100 == 0 or step == args.steps - 1:
            spread = distance.std(1).mean() / distance.mean()
            print(f"step {step} loss {running:.4f} spread {spread:.3f} {time.monotonic() - started:.0f}s", flush=True)
        if step % 500 == 499 or step == args.steps - 1:
            ema.store(parameters)
            ema.copy_to(parameters)
            generator.save(args.out)
            ema.restore(parameters)


if __name__ == "__main__":
    main()
