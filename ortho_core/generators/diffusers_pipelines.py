"""One-step text-to-image pipelines of diffusers; what distinguishes their kinds is in `pipelines/`.

Axes: B images, C × H × W the noise map and the latent, 3 × Y × X the image.
"""

import copy
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from ortho_core.device import Constant, to_device
from ortho_core.errors import UserError
from ortho_core.framing.image_size import text_of
from ortho_core.generators.lora import adapter_file, attach_lora, has_lora, write_lora
from ortho_core.generators.lora_reference import write_lora_reference
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.one_step import OneStep
from ortho_core.generators.origin import base_name
from ortho_core.generators.pipeline_files import RECIPE
from ortho_core.generators.pipeline_loading import load_pipeline
from ortho_core.generators.pipelines.adapter import PartConfig
from ortho_core.generators.pipelines.kinds import adapter_of
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
    #: Whether the text encoders are parked after each encoding.
    parks_text = False

    def __init__(self, pipeline: DiffusionPipeline, timestep: int | None = None, guidance: float | None = None) -> None:
        """`timestep`: the timestep that the weights were distilled for, if it is not the scheduler's first. `guidance`: the
        guidance scale, if it is an input of the network and not the usual one of its kind."""
        self.pipeline, self.adapter = pipeline, adapter_of(pipeline)
        self.timestep, self.guidance = timestep, guidance
        #: The sizes of images that it was trained at, as `WIDTHxHEIGHT`; empty: its own size. Saved with it.
        self.buckets: tuple[str, ...] = ()
        #: The folder that it was loaded from.
        self.folder: ModelFolder | None = None
        #: The device that `park` moves parts to.
        self.host = torch.device("cpu")
        self.step = self.adapter.in_network_terms(OneStep.of(pipeline.scheduler, timestep))
        network, vae = self._config(self.adapter.network), self._config("vae")
        self.latent_shape, self.image_size = self.adapter.shapes(network, vae)
        self.guidance_input = self.adapter.guidance_input(network.content, guidance)
        self.trainable: nn.Module = self.network
        C = self.latent_shape[0]
        mean, factor = (torch.tensor(each).view(1, C, 1, 1) for each in self.adapter.scale(vae.content, C))
        self._latent_mean, self._latent_scale = Constant(mean), Constant(factor)

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
        recipe = folder.recipe
        assert recipe is not None
        generator = DiffusersGenerator(pipeline, recipe.timestep, recipe.guidance)
        generator.folder, generator.buckets = folder, recipe.buckets
        generator.latent_shape, generator.image_size = folder.latent_shape, folder.image_size
        quantize_layers(generator.network, quantize, device, generator.adapter.not_quantized)
        if adapted and keep_adapter:
            attach_lora(generator.network, folder.path)
        # Not `pipeline.to`, which warns that a CPU cannot run float16 parts; PyTorch can.
        for name in folder.base.networks:
            _place(getattr(pipeline, name), device)
        if device.type == "cuda":  # convolutions are fastest in this memory format
            generator.network.to(memory_format=torch.channels_last)
        return generator

    @property
    def half(self) -> str:
        """The half precision that the weights were made for, that of `auto` on a GPU."""
        return self.adapter.half

    def compute_twice(self) -> None:
        """Compute activations again in the backward pass, to store fewer of them."""
        network: Any = self.network
        network.enable_gradient_checkpointing()

    @property
    def network(self) -> nn.Module:
        """The network without wrappers; `trainable` may be a wrapper of it."""
        network: nn.Module = getattr(self.pipeline, self.adapter.network)
        return network

    def _config(self, part: str) -> PartConfig:
        return PartConfig(dict(getattr(self.pipeline, part).config), Path(part))

    @property
    def device(self) -> torch.device:
        # Not `network.device`, which iterates over all parameters at each call.
        parameter: Tensor = next(self.network.parameters())
        return parameter.device

    def at(self, size: tuple[int, int]) -> "DiffusersGenerator":
        if size == self.image_size:
            return self
        C, H, _ = self.latent_shape
        factor = self.image_size[0] // H
        needed = factor * self.adapter.required_multiple(self._config(self.adapter.network).content)
        if any(side % needed for side in size):
            raise UserError(f"{text_of(size)} is not a size of this model: both sides must be multiples of {needed}")
        other = copy.copy(self)
        other.latent_shape, other.image_size = (C, size[0] // factor, size[1] // factor), size
        return other

    def base_noise(self, seeds: list[int]) -> Tensor:
        return to_device(seeded_normal(seeds, self.latent_shape), self.device)

    def park(self, *, text: bool = False, autoencoder: bool = False) -> None:
        texts = self.adapter.text_encoders(self.pipeline) if text else []
        for part in (*texts, *([self.pipeline.vae] if autoencoder else [])):
            _place(part, self.host)

    def encode_prompts(self, prompts: list[str]) -> Condition:
        for part in self.adapter.text_encoders(self.pipeline):
            _place(part, self.device)
        condition = self.adapter.encode_prompts(self.pipeline, prompts, self.image_size)
        if self.parks_text:
            self.park(text=True)
        return Condition(condition)

    def count_truncated(self, prompts: list[str]) -> int:
        return sum(self.adapter.is_truncated(self.pipeline, prompt) for prompt in prompts)

    def encode_images(self, images: Tensor) -> Tensor:
        vae = _place(self.pipeline.vae, self.device)
        latents = self.adapter.encode(vae, images.to(self.device, vae.dtype) * 2 - 1)
        return (latents - self._latent_mean.beside(latents)) * self._latent_scale.beside(latents)

    def denoise(self, noise: Tensor, condition: Condition) -> Tensor:
        tensors = condition.tensors
        timestep = torch.full((len(noise),), self.step.timestep, device=noise.device)

        def network(x: Tensor) -> Tensor:
            return self.adapter.call(self.trainable, x, timestep, tensors, self.guidance_input)

        output = run_network(network, noise * self.step.input_scale, tensors["encoder_hidden_states"].dtype)
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
        if has_lora(self.network):
            if self.folder is None:
                raise ValueError(
                    "a LoRA folder refers to its base, but the generator has no `folder`: load it with `load_generator`"
                )
            base = self.folder.base
            if base.path.resolve().is_relative_to(Path(folder).resolve()):
                raise UserError(
                    f"the LoRA folder {folder} would replace its base model {base.path}; choose another place"
                )

        elif is_quantized(self.network):
            raise UserError("weights in int8 or nf4 are not saved as a model: load the model without --quantize")

        def write(aside: Path) -> None:
            if base is not None:
                write_lora(self.network, aside, self.adapter, title, base_name(base.path))
                write_lora_reference(aside, base.path, base.fingerprint)
            else:
                self.pipeline.save_pretrained(aside, safe_serialization=True)
                recipe = {"timestep": self.timestep, "guidance": self.guidance, "buckets": list(self.buckets)}
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
