"""Headers of the files for other programs, in the fields of Stability's ModelSpec."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

#: ModelSpec's names of the kinds of Stable Diffusion.
SDXL, SD2, SD1 = "stable-diffusion-xl-v1-base", "stable-diffusion-v2-512", "stable-diffusion-v1"
SPEC = "modelspec."
#: Marks a file as written by Ortho, so that Ortho may replace it.
WRITER = "ortho"


def architecture(unet: Mapping[str, Any]) -> str:
    """ModelSpec's name of the kind of Stable Diffusion, by a UNet's configuration."""
    if unet.get("addition_embed_type") == "text_time":
        return SDXL
    return SD2 if unet.get("cross_attention_dim") == 1024 else SD1


def written_here(file: Path) -> bool:
    """Whether Ortho wrote the file: its header has the mark."""
    try:
        with safe_open(file, "pt") as stored:
            return (stored.metadata() or {}).get(f"{SPEC}implementation_version") == WRITER
    except (SafetensorError, OSError):
        return False


def model_spec(architecture: str, title: str) -> dict[str, str]:
    """The fields of a header. It has no date, so that the same model gives the same file."""
    fields = {
        "sai_model_spec": "1.0.1",
        "architecture": architecture,
        "implementation": "https://github.com/Stability-AI/generative-models",
        "implementation_version": WRITER,
        "title": title,
        "description": "A one-step generator fine-tuned with Ortho.",
        "usage_hint": "1 step, CFG 1 (no guidance)",
    }
    return {SPEC + name: value for name, value in fields.items()}
