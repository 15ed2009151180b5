"""A model's parts as its folder's configurations describe them, to count memory with: no weights are read.

Axes: B images, C × H × W the noise map and the latent, 3 × Y × X the image.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ortho_core.generators.class_conditional import ClassGenerator, ClassNetwork
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.part_files import read_json
from ortho_core.generators.pipeline_files import read_index
from ortho_core.generators.protocol import Condition, OneStepGenerator

#: Tokens of a prompt, filled up: the window of CLIP's text encoders.
TOKENS = 77


class BlankPipeline:
    """A `OneStepGenerator` of a diffusers pipeline's shapes; prompts become embeddings of their size without an encoder.

    It calls network and autoencoder as `DiffusersGenerator` does, so that the same tensors are alive.
    """

    def __init__(self, folder: ModelFolder, network: nn.Module, autoencoder: Any) -> None:
        self.latent_shape, self.image_size = folder.latent_shape, folder.image_size
        self.trainable, self.autoencoder = network, autoencoder
        self.config: Any = network.config

    @property
    def device(self) -> torch.device:
        return next(self.trainable.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """That of the frozen weights."""
        return next(self.trainable.parameters()).dtype

    def base_noise(self, seeds: list[int]) -> Tensor:
        return torch.zeros(len(seeds), *self.latent_shape, device=self.device)

    def encode_prompts(self, prompts: list[str]) -> Condition:
        config = self.config
        like: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        width = config.cross_attention_dim
        width = width[0] if isinstance(width, list | tuple) else width
        rows = {"encoder_hidden_states": torch.zeros(len(prompts), TOKENS, width, **like)}
        if config.addition_embed_type == "text_time":
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            rows["text_embeds"] = torch.zeros(len(prompts), pooled, **like)
            rows["time_ids"] = torch.zeros(len(prompts), 6, **like)
        return Condition(rows)

    def count_truncated(self, prompts: list[str]) -> int:
        return 0

    def encode_images(self, images: Tensor) -> Tensor:
        latents: Tensor = self.autoencoder.encode(images * 2 - 1).latent_dist.mean
        return latents * 1.0

    def denoise(self, noise: Tensor, condition: Condition) -> Tensor:
        rows = dict(condition.tensors)
        embeddings = rows.pop("encoder_hidden_states")
        output: Tensor = self.trainable(
            (noise * 1.0).to(embeddings.dtype),
            torch.full((len(noise),), 999.0, device=noise.device),
            encoder_hidden_states=embeddings,
            added_cond_kwargs=rows or None,
            return_dict=False,
        )[0]
        return 0.5 * noise + 0.5 * output.float()

    def decode(self, latents: Tensor) -> Tensor:
        latents = latents / 1.0 + 0.0
        with torch.autocast(self.device.type, enabled=False):
            images: Tensor = self.autoencoder.decode(latents.float(), return_dict=False)[0]
        return images.float() / 2 + 0.5

    def park(self, *, text: bool = False, autoencoder: bool = False) -> None:
        """What is parked is known to who counts."""

    def save(self, folder: Any, card: str | None = None, *, single_file: bool = False) -> None:
        raise NotImplementedError("a model without numbers")


def blank_generator(folder: ModelFolder, dtype: torch.dtype, gradient_checkpointing: bool = False) -> OneStepGenerator:
    """The folder's model, its network in `dtype`; to be called where tensors hold no numbers."""
    if folder.class_config is not None:
        with _default(dtype):
            network = ClassNetwork(folder.class_config).requires_grad_(False).eval()
        return ClassGenerator(folder.class_config, network)
    from diffusers import AutoencoderKL, UNet2DConditionModel

    place = folder.base.configs or folder.base.path
    with _default(dtype):
        unet = UNet2DConditionModel.from_config(read_json(place / "unet" / "config.json"))
    if gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    autoencoder = AutoencoderKL.from_config(read_json(place / "vae" / "config.json"))
    return BlankPipeline(folder, unet.requires_grad_(False).eval(), autoencoder.requires_grad_(False).eval())


def blank_text_encoders(folder: ModelFolder, dtype: torch.dtype) -> list[nn.Module]:
    """The folder's text encoders; of a class-conditional model there are none."""
    if folder.class_config is not None:
        return []
    import transformers

    place = folder.base.configs or folder.base.path
    _, parts = read_index(place)
    found: list[nn.Module] = []
    for name, (_, kind) in parts.items():
        if name.startswith("text_encoder"):
            config = transformers.AutoConfig.from_pretrained(place / name, local_files_only=True)
            with _default(dtype):
                # Its pooled output looks for the end of each text, which tokens without numbers do not have.
                found.append(getattr(transformers, kind)(config).requires_grad_(False).eval())
    return found


def bytes_of(module: nn.Module) -> int:
    """Of the parameters and buffers."""
    return sum(math.prod(t.shape) * t.element_size() for t in (*module.parameters(), *module.buffers()))


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """Inside, new weights are of this type: those without numbers are not converted afterwards."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)
