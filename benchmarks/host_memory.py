"""Memory of the host while a model is loaded in half precision: `python -m benchmarks.host_memory --out runs/host-memory.json`.

The program writes a model folder of SDXL's size (or `--size small`) with random float16 weights, and a LoRA folder of rank 16 on
it. Each is loaded in a separate process. The figure is the most memory of that process, including pages of mapped files, without
the memory of the libraries and of tiny-turbo. For Linux.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.results import write_results
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora import add_lora
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.model_folder import ModelFolder

#: The model folder whose tokenizers and scheduler are copied.
TINY = Path("models/tiny-turbo")
RANK = 16
UNET: dict[str, Any] = {
    "sample_size": 64,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time",
    "use_linear_projection": True,
}
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": 0.13025,
}
#: Settings of UNet, VAE and both text encoders: SDXL's, and some with a twentieth of its weights.
SIZES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "sdxl": (
        {
            **UNET,
            "block_out_channels": (320, 640, 1280),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        {**VAE, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20},
    ),
    "small": (
        {
            **UNET,
            "block_out_channels": (64, 128, 512),
            "transformer_layers_per_block": (1, 1, 4),
            "attention_head_dim": (2, 4, 8),
            "cross_attention_dim": 192,
            "addition_time_embed_dim": 32,
            "projection_class_embeddings_input_dim": 128 + 6 * 32,
        },
        {**VAE, "block_out_channels": (16, 16, 32, 32), "layers_per_block": 1, "norm_num_groups": 8},
        {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2},
        {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2},
    ),
}
#: Loads models, each in a fork of a process that has loaded the first model and has so imported all libraries. Prints the most
#: bytes that each fork used beyond those at its start: `VmHWM` counts only the fork, while `ru_maxrss` starts at the parent's.
LOAD = """
import json, os, sys, torch
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder

torch.set_num_threads(1)

def load(folder, kept):
    generator = load_generator(ModelFolder.open(folder), dtype="float16", keep_adapter=kept)
    assert generator.trainable.conv_in.weight.dtype is torch.float16
    networks = [part for part in generator.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    # Weights of a mapped file are read when they are used: here a number of each page is.
    return sum(float(p.detach().flatten()[::1024].float().sum()) for part in networks for p in part.parameters())

def status(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024

least, *cases = sys.argv[1:]
for kept in (False, True):
    load(least, kept)
for case in cases:
    folder, kept = json.loads(case)
    if (child := os.fork()) == 0:
        start = status("VmRSS")
        load(folder, kept)
        print(status("VmHWM") - start, flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{folder} did not load")
"""


def write_folder(folder: Path, size: str, tiny: Path = TINY) -> Path:
    """A pipeline of random weights in float16, one part in memory at a time."""
    unet, vae, first, second = SIZES[size]
    for name in ("model_index.json", "scheduler", "tokenizer", "tokenizer_2"):
        copy = shutil.copytree if (tiny / name).is_dir() else shutil.copy
        folder.mkdir(parents=True, exist_ok=True)
        copy(tiny / name, folder / name)
    words = {"vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407}
    texts = [CLIPTextConfig(**words, **each, projection_dim=second["hidden_size"]) for each in (first, second)]
    for name, kind, settings in (
        ("unet", UNet2DConditionModel, unet),
        ("vae", AutoencoderKL, vae),
        ("text_encoder", CLIPTextModel, {"config": texts[0]}),
        ("text_encoder_2", CLIPTextModelWithProjection, {"config": texts[1]}),
    ):
        with torch.device("meta"):
            network = kind(**settings).half()
        network.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.uniform_(-0.02, 0.02)
        network.save_pretrained(folder / name)
    return folder


def write_adapter(folder: Path, base: Path) -> Path:
    generator = load_generator(ModelFolder.open(base), dtype="float16")
    add_lora(generator.trainable, Lora(RANK, float(RANK)), seed=0)
    generator.save(folder)
    return folder


def measure(size: str, scratch: Path, tiny: Path = TINY) -> dict[str, dict[str, float]]:
    """For a folder, without and with an adapter: GB of weights on disk, and most GB in use while it is loaded on the CPU."""
    base = write_folder(scratch / size, size, tiny)
    adapter = write_adapter(scratch / f"{size}-lora", base)
    least = write_adapter(scratch / "tiny-lora", tiny.absolute())
    cases = {
        "folder": (base, False),
        "LoRA folder, merged": (adapter, False),
        "LoRA folder, adapter apart": (adapter, True),
    }
    argv = [str(least), *(json.dumps([str(folder), kept]) for folder, kept in cases.values())]
    run = subprocess.run([sys.executable, "-c", LOAD, *argv], capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(run.stderr)
    stored = ModelFolder.open(base).weight_bytes
    return {
        name: {"on_disk_gb": stored / 1e9, "in_use_gb": int(used) / 1e9, "times": int(used) / stored}
        for name, used in zip(cases, run.stdout.split(), strict=True)
    }


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    lines = ["| loaded in float16 | on disk | in use at most | times |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {row['on_disk_gb']:.2f} GB | {row['in_use_gb']:.2f} GB | {row['times']:.2f} |"
        for name, row in found.items()
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="sdxl")
    parser.add_argument("--scratch", type=Path, help="folder in which the models are written, and deleted afterwards")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        found = measure(args.size, Path(scratch))
    print(table(found))
    print(json.dumps(found))
    write_results(found, args.out)


if __name__ == "__main__":
    main()
