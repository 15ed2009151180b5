"""Flow models: `python -m benchmarks.flows --out docs/results/figures/flows.json`.

Three tables, without a GPU and without any published weights:

- `latents`: the relative difference of one-step latents, float32, from those of diffusers' own call, for each kind of pipeline in
  miniature with random weights.
- `overhead`: one evaluation of the E-step over a bare forward and backward of the network alone, on inputs that are ready, with
  the same rows, in turns; medium networks with random weights.
- `memory`: the planned and counted memory of `assign` and of `train --lora-rank 16` for FLUX.1-schnell at 512 pixels and for
  SANA-Sprint at 1024, with the published configurations and no weights.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.estep_throughput import timed
from benchmarks.flow_models import save_flux, save_sana_sprint
from benchmarks.results import write_results
from ortho_core.estep.config import AssignConfig
from ortho_core.estep.engine import Engine
from ortho_core.estep.objective import Reconstruction
from ortho_core.estep.queue import requests_of
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.memory.costs import UpdateCosts, update_costs
from ortho_core.memory.plan import GIB, MOST_SLOTS, plan_update, smaller_updates, usable_bytes
from ortho_core.mstep.config import MStepConfig
from ortho_core.noise.seeded import seeded_normal
from rayjobs.pool.memory import Searched

ROOT = Path(__file__).resolve().parents[1]
TURBO = ROOT / "models" / "tiny-turbo"
PROMPTS = ["a red cat on a mat", "Two DOGS", ""]
#: The authors' settings of their own call for one step, by the kind of pipeline.
OWN_CALL: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": {"guidance_scale": 0.0},
    "StableDiffusionXLPipeline": {"guidance_scale": 0.0},
    "SanaSprintPipeline": {"guidance_scale": 4.5, "intermediate_timesteps": None, "use_resolution_binning": False},
    "FluxPipeline": {"guidance_scale": 0.0, "max_sequence_length": 256},
}
#: Networks whose evaluation takes a good part of a second on a core: as published, but narrower and with fewer layers.
MEDIUM: dict[str, dict[str, Any]] = {
    "sana-sprint": {
        "in_channels": 32,
        "out_channels": 32,
        "sample_size": 16,
        "num_layers": 6,
        "num_attention_heads": 12,
        "attention_head_dim": 32,
        "num_cross_attention_heads": 6,
        "cross_attention_head_dim": 64,
        "cross_attention_dim": 384,
    },
    "flux": {
        "in_channels": 64,
        "num_layers": 2,
        "num_single_layers": 4,
        "num_attention_heads": 4,
        "attention_head_dim": 64,
        "axes_dims_rope": (8, 28, 28),
    },
}
#: Published configurations (FLUX.1-schnell; SANA-Sprint 0.6B).
FLUX: dict[str, Any] = {
    "attention_head_dim": 128,
    "guidance_embeds": False,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "pooled_projection_dim": 768,
}
FLUX_AUTOENCODER: dict[str, Any] = {
    "sample_size": 1024,
    "latent_channels": 16,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
CLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
T5 = {
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
SANA: dict[str, Any] = {
    "attention_head_dim": 32,
    "num_attention_heads": 36,
    "num_cross_attention_heads": 16,
    "num_layers": 28,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
    "caption_channels": 2304,
    "sample_size": 32,
    "in_channels": 32,
    "out_channels": 32,
    "mlp_ratio": 2.5,
    "patch_size": 1,
    "qk_norm": "rms_norm_across_heads",
    "guidance_embeds": True,
    "guidance_embeds_scale": 0.1,
}
SANA_AUTOENCODER: dict[str, Any] = {
    "attention_head_dim": 32,
    "latent_channels": 32,
    "scaling_factor": 0.41407,
    **{f"{side}_block_out_channels": (128, 256, 512, 512, 1024, 1024) for side in ("encoder", "decoder")},
    **{f"{side}_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3 for side in ("encoder", "decoder")},
    **{f"{side}_qkv_multiscales": ((), (), (), (5,), (5,), (5,)) for side in ("encoder", "decoder")},
    "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
    "decoder_layers_per_block": (3,) * 6,
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "downsample_block_type": "Conv",
    "upsample_block_type": "interpolate",
}
GEMMA = {
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "intermediate_size": 9216,
    "vocab_size": 256000,
}
RANK, CARD = 16, 24
#: Entries of a part's configuration that tell its class.
KEPT_ENTRIES = {"_class_name", "architectures", "model_type"}


def own_latents(pipeline: Any, noise: Tensor, size: tuple[int, int], **options: Any) -> Tensor:
    """Latents (B, C, H, W), or images in [0, 1] for `output_type="pt"`, of diffusers' own call at one step for PROMPTS."""
    kind = type(pipeline).__name__
    B, C, H, W = noise.shape
    packed = kind == "FluxPipeline"
    start = pipeline._pack_latents(noise, B, C, H, W) if packed else noise.clone()
    pipeline.set_progress_bar_config(disable=True)
    options = {"output_type": "latent"} | OWN_CALL[kind] | options
    made = pipeline(PROMPTS, num_inference_steps=1, latents=start, height=size[0], width=size[1], **options).images
    unpacked: Tensor = pipeline._unpack_latents(made, *size, pipeline.vae_scale_factor) if made.ndim == 3 else made
    return unpacked


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
def difference(folder: Path) -> dict[str, Any]:
    """The relative difference of a folder's latents from those of diffusers' own call."""
    generator: Any = load_generator(folder)
    noise = seeded_normal([3, 4, 5], generator.latent_shape)
    latents = generator.denoise(noise, generator.encode_prompts(PROMPTS))
    pipeline = DiffusionPipeline.from_pretrained(folder)
    expected = own_latents(pipeline, noise, generator.image_size)
    return {"kind": type(pipeline).__name__, "difference": relative(latents, expected)}


def bare(generator: Any, rows: int) -> Callable[[], None]:
    """A forward and backward of the network alone, in the shape that it takes."""
    condition = generator.encode_prompts([PROMPTS[0]] * rows).tensors
    x = generator.base_noise(list(range(rows)))
    time_ = torch.ones(rows)
    if type(generator.pipeline).__name__ == "FluxPipeline":
        B, C, H, W = x.shape
        T = condition["encoder_hidden_states"].shape[1]
        x = generator.pipeline._pack_latents(x, B, C, H, W)
        places = generator.pipeline._prepare_latent_image_ids(B, H // 2, W // 2, x.device, x.dtype)
        call = partial(generator.network, timestep=time_, img_ids=places, txt_ids=torch.zeros(T, 3), **condition)
    else:
        call = partial(generator.network, timestep=time_, guidance=0.45 * time_, **condition)
    x.requires_grad_(True)

    def once() -> None:
        output = call(hidden_states=x, return_dict=False)[0]
        torch.autograd.grad(output, x, torch.ones_like(output))

    return once


def overhead(name: str, folder: Path, rows: int, rounds: int) -> dict[str, Any]:
    """One evaluation of the E-step over `bare`; medians of rounds in turns."""
    generator: Any = load_generator(folder)
    config = AssignConfig(steps=4, patience=0, patch_size=2)
    seeds = list(range(rows))
    with torch.no_grad():
        condition = generator.encode_prompts([PROMPTS[0]] * rows)
        targets = generator.denoise(generator.base_noise([seed + rows for seed in seeds]), condition)
    inputs = Reconstruction(generator, config).inputs(condition, targets, None)
    work = list(requests_of(range(rows), seeds, inputs))
    engine, alone = Engine(generator, config, rows), bare(generator, rows)

    def search() -> None:
        for _ in engine.run(work):
            pass

    def bare_steps() -> None:
        for _ in range(config.steps):
            alone()

    search()  # measures the sensitivity, once per model
    bare_steps()
    ratios, seconds = [], []
    for _ in range(rounds):
        whole, ours = timed(bare_steps), timed(search)
        ratios.append(ours / whole)
        seconds.append(whole / config.steps)
    return {
        "model": name,
        "rows": rows,
        "bare_seconds": round(statistics.median(seconds), 3),
        "ratio": round(statistics.median(ratios), 3),
        "rounds": [round(ratio, 3) for ratio in sorted(ratios)],
    }


def configured(folder: Path, like: Path, configs: Mapping[str, Mapping[str, Any]]) -> ModelFolder:
    """A folder with published configurations, in place of those of the miniature `like`, and its tokenizers and scheduler. Its
    files of weights contain one number, since a plan does not read them."""
    shutil.copytree(like, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    for part, config in configs.items():
        file = folder / part / "config.json"
        named = {key: value for key, value in json.loads(file.read_text()).items() if key in KEPT_ENTRIES}
        file.write_text(json.dumps({**named, **config}))
        stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
        save_file({"nothing": torch.zeros(1)}, folder / part / f"{stem}.safetensors")
    return ModelFolder.open(folder)


def planned(name: str, model: ModelFolder, rows: int) -> Iterator[dict[str, Any]]:
    """The plans of `assign` and of `train --lora-rank 16` for a GPU of 24 GiB, by the packing of the network."""
    usable = usable_bytes(CARD * GIB)
    size = "x".join(map(str, reversed(model.image_size)))
    for quantize in ("nf4", "none"):
        about = {"model": name, "size": size, "quantize": quantize, "card_gib": CARD}
        searched = Searched(model, "bfloat16", AssignConfig(), MOST_SLOTS, 10_000, decodes=False, quantize=quantize)
        yield {"verb": "assign", **about, **searched.fitting(usable).as_json()}

        def costs(checkpointing: bool, quantize: str = quantize) -> UpdateCosts:
            return update_costs(
                model,
                MStepConfig(mixed_precision="bf16"),
                dtype="bfloat16",
                lora=Lora(RANK, float(RANK), model.adapter.lora_targets),
                gradient_checkpointing=checkpointing,
                second_network=False,
                quantize=quantize,
            )

        counted = costs(False)
        parked = counted.weights.autoencoder
        plan = plan_update(counted, usable, rows, 1, 1, parked, False)
        if not plan.fits:
            others = list(smaller_updates(plan, costs, rows, 1, parked))
            plan = next((other for other in others if other.fits), others[-1])
        weights = {name: round(getattr(counted.weights, name) / GIB, 2) for name in ("network", "text", "autoencoder")}
        verb = f"train --lora-rank {RANK} --batch-size {rows}"
        chosen = {"micro_batches": plan.micro_batches, "weights_gib_of": weights}
        yield {"verb": verb, **about, **plan.as_json(), **chosen}
        # The same update with the text encoders in host memory, as with embeddings on disk.
        twice, off = plan.gradient_checkpointing, parked + counted.weights.text
        embedded = plan_update(costs(twice), usable, rows, 1, plan.micro_batches, off, twice)
        yield {"verb": f"{verb} --prompt-embeddings", **about, **embedded.as_json(), **chosen}


def latents(scratch: Path) -> Iterator[dict[str, Any]]:
    """`difference` for the miniatures, and for the model that ships."""
    yield from map(difference, (TURBO, *miniatures(scratch)))


def miniatures(scratch: Path) -> tuple[Path, Path]:
    return save_sana_sprint(scratch / "sana-sprint"), save_flux(TURBO, scratch / "flux")


def memory(scratch: Path) -> Iterator[dict[str, Any]]:
    """The plans at the published shapes."""
    sana, flux = miniatures(scratch)
    of_flux = {"transformer": FLUX, "vae": FLUX_AUTOENCODER, "text_encoder": CLIP, "text_encoder_2": T5}
    of_sana = {"transformer": SANA, "vae": SANA_AUTOENCODER, "text_encoder": GEMMA}
    schnell = configured(scratch / "FLUX.1-schnell", flux, of_flux)
    yield from planned("FLUX.1-schnell", schnell.at((512, 512)), 1)
    yield from planned("SANA-Sprint 0.6B", configured(scratch / "SANA-Sprint", sana, of_sana), 4)


def overheads(scratch: Path, rows: int, rounds: int) -> Iterator[dict[str, Any]]:
    """`overhead` of the medium networks."""
    made = {
        "sana-sprint": save_sana_sprint(scratch / "medium-sana-sprint", **MEDIUM["sana-sprint"]),
        "flux": save_flux(TURBO, scratch / "medium-flux", **MEDIUM["flux"]),
    }
    for name, folder in made.items():
        yield overhead(name, folder, rows, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=("latents", "overhead", "memory"), help="one of the three tables")
    parser.add_argument("--rows", type=int, default=8, help="rows of one evaluation")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, Any]]] = {}
    tables: dict[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
        "latents": latents,
        "overhead": partial(overheads, rows=args.rows, rounds=args.rounds),
        "memory": memory,
    }
    for name, table in tables.items():
        if args.only in (None, name):
            with tempfile.TemporaryDirectory() as scratch:
                for row in table(Path(scratch)):
                    found.setdefault(name, []).append(row)
                    print(json.dumps(row), flush=True)
    write_results(found, args.out)


if __name__ == "__main__":
    main()
