"""Write LoRAs in the format of kohya's sd-scripts, which ComfyUI, Forge and A1111 read: one file, to copy to their folder.

Each adapted layer has three tensors: `NAME.lora_down.weight` (A), `NAME.lora_up.weight` (B) and `NAME.alpha`; a reader adds
α/r · B A to the weights. NAME is `lora_unet_` and the layer's name with underscores for dots. For SDXL's UNet it is the original
name, for other UNets that of diffusers, because kohya trains these implementations.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ortho_core.generators.lora_config import Lora
from ortho_core.generators.original_names import UNetNames, foreign_blocks
from ortho_core.generators.shared_files import SD1, SD2, SDXL, architecture, model_spec
from ortho_core.storage.tensors import in_type, write_tensors

#: kohya's names of the base models, by the architecture that the file states.
VERSIONS = {SDXL: "sdxl_base_v1-0", SD2: "sd_v2", SD1: "sd_v1"}


def kohya_tensors(
    weights: Mapping[str, Tensor], lora: Lora, unet: Mapping[str, Any], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The tensors of a kohya file. `weights` are PEFT's, named as in the UNet (`mid_block. ... .to_q.lora_A.weight`); `unet` is
    the UNet's configuration.

    A and B are in `dtype`, α in float32. Raises UserError for a layer of SDXL's UNet that has no original name.
    """
    sgm = architecture(unet) == SDXL and not foreign_blocks(unet)
    original = UNetNames(unet).original if sgm else str
    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        layer, _, kind = name.removesuffix(".weight").rpartition(".lora_")
        key = f"lora_unet_{original(layer).replace('.', '_')}"
        tensors[f"{key}.lora_{'down' if kind == 'A' else 'up'}.weight"] = in_type(weight, dtype)
        tensors[f"{key}.alpha"] = torch.tensor(lora.alpha)
    return tensors


def write_kohya(
    file: Path,
    weights: Mapping[str, Tensor],
    lora: Lora,
    unet: Mapping[str, Any],
    *,
    title: str,
    base: str,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a kohya file of `weights` (see `kohya_tensors`); `title` and `base` go into its header, for readers.

    Raises UserError for layers that have no name in the format.
    """
    of = architecture(unet)
    header = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(lora.rank),
        "ss_network_alpha": str(lora.alpha),
        "ss_base_model_version": VERSIONS[of],
        "ss_v2": str(of == SD2),
        "ss_sd_model_name": Path(base).name if Path(base).is_absolute() else base,
        **model_spec(f"{of}/lora", title),
    }
    write_tensors(file, kohya_tensors(weights, lora, unet, dtype), header)
