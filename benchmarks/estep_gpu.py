"""The E-step on a CUDA device at SDXL's size: `python -m benchmarks.estep_gpu --out runs/gpu.json`.

UNet and VAE are built from SDXL Turbo's configuration with random weights: nothing is downloaded, and the time does not depend
on the weights. The reference loop has one image at a time, the UNet in fp16 and the VAE in fp32, and decodes at every evaluation.
Ours is the engine in bf16 with several slot counts, with and without torch.compile. It needs torch, diffusers and ortho_core, but
not Ray. Without a CUDA device it prints that and exits with 0; `--small` runs a miniature on any device.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.estep_throughput import bare, reference_loop, synchronize, timed
from benchmarks.problem import Problem
from benchmarks.results import write_results
from ortho_core.device import to_device
from ortho_core.estep.config import AssignConfig
from ortho_core.estep.engine import Engine
from ortho_core.generators.diffusers_pipelines import DiffusersGenerator
from ortho_core.generators.protocol import Condition

#: SDXL's UNet and VAE, and a miniature of the same classes.
FULL: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SMALL = FULL | {
    "sample_size": 16,
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 1,
    "transformer_layers_per_block": (1, 1, 1),
    "attention_head_dim": (2, 2, 2),
    "cross_attention_dim": 64,
}
TOKENS = 77


def random_unet(shape: dict[str, Any], device: torch.device) -> UNet2DConditionModel:
    """SDXL's network of that size, created on the device."""
    with torch.device(device):
        return UNet2DConditionModel(
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            use_linear_projection=True,
            addition_embed_type="text_time",
            **shape,
        )


def random_condition(config: Any, B: int, like: dict[str, Any]) -> Condition:
    """Random embeddings with the shapes of SDXL's text encoders."""
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    return Condition(
        {
            "encoder_hidden_states": torch.randn(B, TOKENS, config.cross_attention_dim, **like),
            "text_embeds": torch.randn(B, pooled, **like),
            "time_ids": torch.zeros(B, 6, **like),
        }
    )


class RandomTurbo(DiffusersGenerator):
    """SDXL Turbo with random weights and, in place of its text encoders, random embeddings of their shape."""

    @staticmethod
    def build(shape: dict[str, Any], device: torch.device, dtype: torch.dtype, compile: bool = False) -> "RandomTurbo":
        torch.manual_seed(0)
        unet = random_unet(shape, device)
        with torch.device(device):
            full = shape is FULL
            vae = AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512) if full else (32, 32, 32, 32),
                layers_per_block=2 if full else 1,
                latent_channels=4,
                scaling_factor=0.13025,
            )
        scheduler = EulerAncestralDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
        )
        pipeline = StableDiffusionXLPipeline(
            vae=vae.requires_grad_(False).eval(),
            unet=unet.to(dtype).requires_grad_(False).eval(),
            text_encoder=None,
            text_encoder_2=None,
            tokenizer=None,
            tokenizer_2=None,
            scheduler=scheduler,
        )
        generator = RandomTurbo(pipeline)
        if device.type == "cuda":
            unet.to(memory_format=torch.channels_last)
        if compile:
            compiled: Any = torch.compile(unet, dynamic=False)
            generator.trainable = compiled
        return generator

    def encode_prompts(self, prompts: list[str]) -> Condition:
        unet = self.pipeline.unet
        return random_condition(unet.config, len(prompts), {"device": self.device, "dtype": unet.dtype})


def problem_of(generator: RandomTurbo, images: int) -> Problem:
    """Random targets with the shape of latents; the time does not depend on them."""
    condition = generator.encode_prompts([""] * images)
    stream = torch.Generator().manual_seed(0)
    targets = to_device(torch.randn(images, *generator.latent_shape, generator=stream), generator.device)
    return Problem(generator, condition, targets, list(range(images)), [""] * images, 2)


def matmul_ceiling(device: torch.device, dtype: torch.dtype, side: int, rounds: int) -> float:
    """FLOP/s of a large matrix product, the best of several runs."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))

    def product() -> None:
        torch.mm(a, b)
        synchronize(device)

    product()
    return 2 * side**3 / min(timed(product) for _ in range(rounds))


def flops_of_an_evaluation(problem: Problem) -> float:
    """Forward and backward of the network for one image, counted by PyTorch."""
    counter = FlopCounterMode(display=False)
    with counter:
        bare(problem, 1)()
    return float(counter.get_total_flops())


def measure(problem: Problem, slots: int, evaluations: int, rounds: int) -> dict[str, float]:
    """Images per second and peak memory of the engine, and its evaluation relative to a bare forward and backward."""
    device = problem.generator.device
    config = AssignConfig(steps=evaluations, patience=0)
    engine, work = Engine(problem.generator, config, slots), problem.requests(config)
    bare_step = bare(problem, slots)

    def search() -> None:
        for _ in engine.run(work):
            pass
        synchronize(device)

    def alone() -> None:
        for _ in range(2 * evaluations):
            bare_step()

    search()
    alone()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds, bare_seconds = [], []
    for _ in range(rounds):
        seconds.append(timed(search))
        bare_seconds.append(timed(alone))
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else float("nan")
    whole = statistics.median(seconds)
    return {
        "images_per_second": 2 * slots / whole,
        "evaluations_per_second": 2 * slots * evaluations / whole,
        "peak_gib": peak,
        "over_bare": whole / statistics.median(bare_seconds),
    }


def release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def reference_speed(shape: dict[str, Any], args: argparse.Namespace, device: torch.device) -> float:
    """Images per second of the reference loop; its generator is freed on return."""
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    reference = problem_of(RandomTurbo.build(shape, device, dtype), 4)
    reference_loop(reference, 1, 2)
    images = args.reference_images
    seconds = [timed(lambda: reference_loop(reference, images, args.evaluations)) for _ in range(args.rounds)]
    return images / statistics.median(seconds)


def table(say: Callable[[str], None], args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    shape = SMALL if args.small else FULL
    base = reference_speed(shape, args, device)
    say(f"reference loop (fp16 UNet, fp32 VAE, one image): {base:.3f} images/s at {args.evaluations} evaluations")
    release()
    ceiling = matmul_ceiling(device, torch.bfloat16, 512 if args.small else 8192, 10)
    say(f"matrix product in bf16: {ceiling / 1e12:.1f} TFLOP/s")
    flops = flops_of_an_evaluation(problem_of(RandomTurbo.build(shape, device, torch.bfloat16), 1))
    release()
    found: dict[str, Any] = {"reference_images_per_second": base, "ceiling_tflops": ceiling / 1e12, "rows": []}
    say("compile  slots  images/s  of reference  evaluations/s  TFLOP/s  of ceiling  peak GiB  over bare")
    for compile in (False, True):
        generator = RandomTurbo.build(shape, device, torch.bfloat16, compile)
        for slots in args.slots:
            try:
                row = measure(problem_of(generator, 2 * slots), slots, args.evaluations, args.rounds)
            except torch.OutOfMemoryError:
                say(f"{compile!s:7s}  {slots:5d}  out of memory")
                release()
                continue
            achieved = row["evaluations_per_second"] * flops
            row |= {"compile": compile, "slots": slots, "of_reference": row["images_per_second"] / base}
            row |= {"tflops": achieved / 1e12, "of_ceiling": achieved / ceiling}
            found["rows"].append(row)
            say(
                f"{compile!s:7s}  {slots:5d}  {row['images_per_second']:8.3f}  {row['of_reference']:12.2f}  "
                f"{row['evaluations_per_second']:13.2f}  {row['tflops']:7.1f}  {row['of_ceiling']:10.2f}  "
                f"{row['peak_gib']:8.1f}  {row['over_bare']:9.3f}"
            )
        del generator
        release()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=12)
    parser.add_argument("--reference-images", type=int, default=3)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a miniature, on the CPU if there is no GPU")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.small:
        print("estep_gpu: no CUDA device, nothing was measured")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, in miniature"
    print(f"{name}, PyTorch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    found = table(lambda line: print(line, flush=True), args, device)
    write_results({"device": name, **found}, args.out)


if __name__ == "__main__":
    main()
