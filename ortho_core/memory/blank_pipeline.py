"""A diffusers pipeline without numbers. It runs the same operations as a loaded pipeline.

Axes: B images or prompts, C × H × W the noise map and the latent, T tokens.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ortho_core.device import Constant
from ortho_core.generators.diffusers_pipelines import DiffusersGenerator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.one_step import OneStep
from ortho_core.generators.protocol import Condition


class BlankPipeline(DiffusersGenerator):
    """`DiffusersGenerator` over networks without numbers: noise is all zeros, and so are the tokens of every prompt."""

    def __init__(
        self, folder: ModelFolder, network: nn.Module, autoencoder: nn.Module, texts: list[tuple[nn.Module, int]]
    ) -> None:
        """`texts` are the text encoders, each with the number of tokens to which a prompt is padded."""
        self.pipeline: Any = SimpleNamespace(unet=network, vae=autoencoder)
        self.trainable, self.texts = network, texts
        self.folder, self.timestep = folder, None
        self.latent_shape, self.image_size = folder.latent_shape, folder.image_size
        # A scheduler can only be read by running it, which needs numbers. These values affect no size.
        self.step = OneStep(timestep=999.0, input_scale=1.0, noise_weight=0.5, output_weight=0.5)
        shape = (1, self.latent_shape[0], 1, 1)
        self._latent_mean, self._latent_scale = Constant(torch.zeros(shape)), Constant(torch.ones(shape))

    @property
    def text_encoders(self) -> list[nn.Module]:
        return [encoder for encoder, _ in self.texts]

    def base_noise(self, seeds: list[int]) -> Tensor:
        return torch.zeros(len(seeds), *self.latent_shape, device=self.device)

    def encode_prompts(self, prompts: list[str]) -> Condition:
        """Call the encoders as diffusers' pipelines do. Only the condition stays alive afterwards."""
        B, device = len(prompts), self.device
        extra = self.pipeline.unet.config.addition_embed_type == "text_time"
        states, pooled = [], None
        for encoder, T in self.texts:
            tokens = torch.zeros(B, T, dtype=torch.long, device=device)
            output = encoder(tokens, output_hidden_states=extra)
            if pooled is None and output[0].ndim == 2:
                pooled = output[0]
            states.append(output.hidden_states[-2] if extra else output[0])
            del output
        # The pipelines make copies, too.
        condition = {"encoder_hidden_states": torch.cat(states, -1).repeat(1, 1, 1)}
        if extra:
            assert pooled is not None
            ids = torch.zeros(1, 6, dtype=states[0].dtype, device=device)
            condition |= {"text_embeds": pooled.repeat(1, 1), "time_ids": ids.repeat(B, 1)}
        return Condition(condition)

    def count_truncated(self, prompts: list[str]) -> int:
        return 0

    def park(self, *, text: bool = False, autoencoder: bool = False) -> None:
        """Nothing to do: the code that counts knows which parts are parked."""

    def save(self, folder: Any, card: str | None = None, *, single_file: bool = False) -> None:
        raise NotImplementedError("a model without numbers")
