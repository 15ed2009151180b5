"""One-step text-to-image pipelines of diffusers: SDXL Turbo, SD-Turbo and models derived from them.

Axes: B images, C × H × W the noise map and the latent, 3 × Y × X the image.
"""

import copy
import json
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import DiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from ortho_core.device import Constant, to_device
from ortho_core.errors import UserError
from ortho_core.framing.frame import Frame
from ortho_core.framing.image_size import text_of
from ortho_core.generators.lora import adapter_file, attach_lora, has_lora, write_lora
from ortho_core.generators.model_folder import ModelFolder, write_lora_reference
from ortho_core.generators.one_step import OneStep
from ortho_core.generators.origin import base_name
from ortho_core.generators.pipeline_files import RECIPE
from ortho_core.generators.pipeline_loading import load_pipeline
from ortho_core.generators.precision import run_network
from ortho_core.generators.protocol import Condition
from ortho_core.generators.quantized import is_quantized, quantize_layers
from ortho_core.generators.single_file import SINGLE_FILE, write_single_file
from ortho_core.noise.seeded import seeded_normal
from ortho_core.storage.folders import replace_folder

# A job has its own progress line; progress bars for the seven parts of a pipeline add nothing.
diffusers_logging.disable_progress_bar()
transformers_logging.disable_progress_bar()

M = TypeVar("M", bound=nn.Module)


class DiffusersGenerator:
    """A `OneStepGenerator` around a loaded diffusers pipeline, run without classifier-free guidance.

    The network and text encoders compute in the pipeline's dtype, the VAE in float32 (SDXL's overflows in float16).
    """

    loaded_fingerprint: str | None = None

    def __init__(self, pipeline: DiffusionPipeline, timestep: int | None = None) -> None:
        """`timestep`: the timestep that the weights were distilled for, if it is not the scheduler's first."""
        self.pipeline, self.timestep = pipeline, timestep
        #: The sizes of images that it was trained at, as `WIDTHxHEIGHT`; empty: its own size. Saved with it.
        self.buckets: tuple[str, ...] = ()
        #: The folder that it was loaded from.
        self.folder: ModelFolder | None = None
        #: The device that `park` moves parts to, and whether the text encoders are parked after each encoding.
        self.host, self.parks_text = torch.device("cpu"), False
        unet, vae = pipeline.unet, pipeline.vae
        if unet.config.time_cond_proj_dim is not None:
            raise UserError(
                "a UNet with a guidance embedding (time_cond_proj_dim) is not supported as a one-step model"
            )
        self.step = OneStep.of(pipeline.scheduler, timestep)
        size = unet.config.sample_size
        H, W = (size, size) if isinstance(size, int) else size
        self.latent_shape = (int(unet.config.in_channels), int(H), int(W))
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.image_size = (int(H) * factor, int(W) * factor)
        self.trainable: nn.Module = unet
        mean, std = getattr(vae.config, "latents_mean", None), getattr(vae.config, "latents_std", None)
        channels = self.latent_shape[0]
        mean, std = (
            torch.tensor(each).view(1, channels, 1, 1) for each in (mean or [0.0] * channels, std or [1.0] * channels)
        )
        self._latent_mean, self._latent_scale = Constant(mean), Constant(vae.config.scaling_factor / std)

    @staticmethod
    def load(
        folder: ModelFolder,
        device: torch.device,
        dtype: torch.dtype,
        *,
        keep_adapter: bool = False,
        quantize: str = "none",
    ) -> "DiffusersGenerator":
        """Load a pipeline's folder or checkpoint from local safetensors, or a LoRA folder and its base.

        The adapter is merged into the network; with `keep_adapter` it stays separate and trainable. After a merge, `quantize`
        packs the network. Raises UserError, naming the broken file.
        """
        adapted = folder.lora_base is not None
        merged = () if keep_adapter or not adapted else (adapter_file(folder),)
        pipeline = load_pipeline(folder, dtype, (*merged, *folder.loras))
        generator = DiffusersGenerator(pipeline, folder.recipe.timestep if folder.recipe is not None else None)
        generator.folder = folder
        generator.buckets = folder.recipe.buckets if folder.recipe is not None else ()
        generator.latent_shape, generator.image_size = folder.latent_shape, folder.image_size
        quantize_layers(pipeline.unet, quantize, device)
        if adapted and keep_adapter:
            attach_lora(pipeline.unet, folder.path)
        # Not `pipeline.to`, which warns that a CPU cannot run float16 parts; PyTorch can.
        for name in folder.base.networks:
            _place(getattr(pipeline, name), device)
        if device.type == "cuda":  # convolutions are fastest in this memory format
            pipeline.unet.to(memory_format=torch.channels_last)
        return generator

    @property
    def device(self) -> torch.device:
        # Not `unet.device`, which iterates over all parameters at each call.
        parameter: Tensor = next(self.pipeline.unet.parameters())
        return parameter.device

    def at(self, size: tuple[int, int]) -> "DiffusersGenerator":
        if size == self.image_size:
            return self
        C, H, _ = self.latent_shape
        factor = self.image_size[0] // H
        if any(side % factor for side in size):
            raise UserError(f"{text_of(size)} is not a size of this model: both sides must be multiples of {factor}")
        other = copy.copy(self)
        other.latent_shape, other.image_size = (C, size[0] // factor, size[1] // factor), size
        return other

    def base_noise(self, seeds: list[int]) -> Tensor:
        return to_device(seeded_normal(seeds, self.latent_shape), self.device)

    def _text_encoders(self) -> list[nn.Module]:
        parts = (self.pipeline.text_encoder, getattr(self.pipeline, "text_encoder_2", None))
        return [part for part in parts if part is not None]

    def park(self, *, text: bool = False, autoencoder: bool = False) -> None:
        for part in (self._text_encoders() if text else []) + ([self.pipeline.vae] if autoencoder else []):
            _place(part, self.host)

    def encode_prompts(self, prompts: list[str]) -> Condition:
        for part in self._text_encoders():
            _place(part, self.device)
        encoded = self.pipeline.encode_prompt(
            prompts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        condition = {"encoder_hidden_states": encoded[0]}
        if isinstance(self.pipeline, StableDiffusionXLPipeline):
            # SDXL's micro-conditioning for an uncropped image: original size, crop corner, target size.
            ids = torch.tensor([Frame.plain(self.image_size)], dtype=encoded[0].dtype)
            condition |= {"text_embeds": encoded[2], "time_ids": to_device(ids, self.device).repeat(len(prompts), 1)}
        if self.parks_text:
            self.park(text=True)
        return Condition(condition)

    def count_truncated(self, prompts: list[str]) -> int:
        tokenizers = [self.pipeline.tokenizer, getattr(self.pipeline, "tokenizer_2", None)]
        return sum(
            any(len(t(prompt).input_ids) > t.model_max_length for t in tokenizers if t is not None)
            for prompt in prompts
        )

    def encode_images(self, images: Tensor) -> Tensor:
        vae = _place(self.pipeline.vae, self.device)
        latents = vae.encode(images.to(self.device, vae.dtype) * 2 - 1).latent_dist.mean
        return (latents - self._latent_mean.beside(latents)) * self._latent_scale.beside(latents)

    def denoise(self, noise: Tensor, condition: Condition) -> Tensor:
        tensors = dict(condition.tensors)
        added = {k: tensors.pop(k) for k in ("text_embeds", "time_ids") if k in tensors}
        dtype = tensors["encoder_hidden_states"].dtype
        timestep = torch.full((len(noise),), self.step.timestep, device=noise.device)

        def network(x: Tensor) -> Tensor:
            output: Tensor = self.trainable(
                x,
                timestep,
                encoder_hidden_states=tensors["encoder_hidden_states"],
                added_cond_kwargs=added or None,
                return_dict=False,
            )[0]
            return output

        output = run_network(network, noise * self.step.input_scale, dtype)
        return self.step.noise_weight * noise + self.step.output_weight * output

    def decode(self, latents: Tensor) -> Tensor:
        vae = _place(self.pipeline.vae, self.device)
        latents = latents / self._latent_scale.beside(latents) + self._latent_mean.beside(latents)
        # Without autocast, whatever the network trains in: images rounded to half precision lose small differences.
        with torch.autocast(self.device.type, enabled=False):
            images: Tensor = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
        return images.float() / 2 + 0.5

    def save(self, folder: str | Path, card: str | None = None, *, single_file: bool = False) -> None:
        """Write a model folder, or a LoRA folder if the network has a separate adapter; `card` becomes its README.md.

        `single_file` adds a single-file checkpoint to a model folder. Raises UserError for a LoRA folder that would replace its
        base, for quantised weights, and for a pipeline that has no single-file format.
        """
        base, title = None, "/".join(Path(folder).absolute().parts[-2:])
        if has_lora(self.pipeline.unet):
            if self.folder is None:
                raise ValueError(
                    "a LoRA folder refers to its base, but the generator has no `folder`: load it with `load_generator`"
                )
            base = self.folder.base
            if base.path.resolve().is_relative_to(Path(folder).resolve()):
                raise UserError(
                    f"the LoRA folder {folder} would replace its base model {base.path}; choose another place"
                )

        elif is_quantized(self.pipeline.unet):
            raise UserError("weights in int8 or nf4 are not saved as a model: load the model without --quantize")

        def write(aside: Path) -> None:
            if base is not None:
                write_lora(self.pipeline.unet, aside, title, base_name(base.path))
                write_lora_reference(aside, base)
            else:
                self.pipeline.save_pretrained(aside, safe_serialization=True)
                recipe = {"timestep": self.timestep, "buckets": list(self.buckets)}
                if recipe := {name: value for name, value in recipe.items() if value not in (None, [])}:
                    (aside / RECIPE).write_text(json.dumps(recipe))
                if single_file:
                    write_single_file(aside / SINGLE_FILE, self.pipeline, title=title)
            if card is not None:
                (aside / "README.md").write_text(card, encoding="utf-8")

        replace_folder(Path(folder), write)


def _place(module: M, device: torch.device) -> M:
    """Move `module` to `device`, unless its first parameter is already there."""
    return module if next(module.parameters()).device == device else module.to(device)
