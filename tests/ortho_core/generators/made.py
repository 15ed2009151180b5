"""Model folders as they are found in the world."""

import json
import shutil
import subprocess
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ortho_core.generators.pipeline_files import INDEX


def hub_clone(model: Path, folder: Path) -> None:
    """The model with everything around it that a clone of a hub's repository has, and its JSON laid out otherwise."""
    shutil.copytree(model, folder)
    for file in folder.rglob("*.json"):
        content = json.loads(file.read_text())
        content = dict(reversed(content.items()))
        if file.name in ("config.json", "scheduler_config.json", INDEX):
            content |= {"_diffusers_version": "0.21.0.dev0", "_name_or_path": "someone/turbo"}
        file.write_text(json.dumps(content, indent=7, ensure_ascii=False) + "\n\n", encoding="utf-8")
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
    for name in (
        "README.md",
        "LICENSE.md",
        "output_tile.jpg",
        ".cache/huggingface/download/model.safetensors.metadata",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("about the model")
    for part, name in (
        *((part, "diffusion_pytorch_model") for part in ("unet", "vae")),
        *((part, "model") for part in ("text_encoder", "text_encoder_2")),
    ):
        weights = load_file(folder / part / f"{name}.safetensors")
        save_file({k: v.half() for k, v in weights.items()}, folder / part / f"{name}.fp16.safetensors")
        torch.save(weights, folder / part / f"{name.replace('model', 'pytorch_model')}.bin")
        for other in ("model.onnx", "openvino_model.xml", "flax_model.msgpack"):
            (folder / part / other).write_bytes(b"the same in another format")
    shutil.copy(folder / "unet" / "diffusion_pytorch_model.safetensors", folder / "sd_xl_turbo_1.0.safetensors")
    shutil.copytree(folder / "vae", folder / "vae_1_0")
    (folder / "vae_decoder").mkdir()
    (folder / "vae_decoder" / "config.json").write_text("{}")
    (folder / "unet" / ".ipynb_checkpoints").mkdir()
    (folder / "unet" / ".ipynb_checkpoints" / "config.json").write_text("{}")
