"""A diffusers pipeline without numbers. It runs the same operations as a loaded pipeline: those of its adapter.

Axes: B images or prompts, C × H × W the noise map and the latent, T tokens.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ortho_core.device import Constant
from ortho_core.generators.diffusers_pipelines import DiffusersGenerator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.one_step import OneStep
from ortho_core.generators.pipeline_loading import pipeline_class


class BlankTokenizer:
    """Gives zeros for every prompt, as many as the pipeline asks for."""

    padding_side = "right"

    def __init__(self, limit: int, length: Callable[[str], int]) -> None:
        """`limit` is the tokenizer's; `length` is the number of tokens of a text that a pipeline adds to every prompt."""
        self.model_max_length, self.length = limit, length

    def __call__(self, prompts: list[str] | str, padding: str = "longest", max_length: int = 1, **_: object) -> Any:
        """Tokens (B, T) and their mask, T = `max_length` if padded to it."""
        B = 1 if isinstance(prompts, str) else len(prompts)
        tokens = torch.zeros(B, max_length if padding == "max_length" else 1, dtype=torch.long)
        return SimpleNamespace(input_ids=tokens, attention_mask=torch.ones_like(tokens))

    def tokenize(self, prompt: str) -> list[str]:
        """No tokens, so that none is looked up."""
        return []

    def encode(self, text: str) -> list[int]:
        """Zeros, as many as the text has tokens."""
        return [0] * self.length(text)


class BlankPipeline(DiffusersGenerator):
    """`DiffusersGenerator` over networks without numbers: noise is all zeros, and so are the tokens of every prompt."""

    def __init__(self, folder: ModelFolder, network: nn.Module, autoencoder: nn.Module, texts: dict[str, Any]) -> None:
        """`texts` are the text encoders and their tokenizers, by the names of the parts."""
        adapter = self.adapter = folder.adapter
        parts = dict.fromkeys(adapter.parts) | {adapter.network: network, "vae": autoencoder} | texts
        self.pipeline: Any = pipeline_class(folder.kind)(**parts, **adapter.left_out)
        self.trainable, self.folder, self.timestep = network, folder, None
        self.guidance_input = adapter.guidance_input(folder.network_config, None)
        self.latent_shape, self.image_size = folder.latent_shape, folder.image_size
        # A scheduler can only be read by running it, which needs numbers. These values affect no size.
        self.step = OneStep(timestep=999.0, input_scale=1.0, noise_weight=0.5, output_weight=0.5)
        shape = (1, self.latent_shape[0], 1, 1)
        self._latent_mean, self._latent_scale = Constant(torch.zeros(shape)), Constant(torch.ones(shape))

    @property
    def text_encoders(self) -> list[nn.Module]:
        return self.adapter.text_encoders(self.pipeline)

    def base_noise(self, seeds: list[int]) -> Tensor:
        return torch.zeros(len(seeds), *self.latent_shape, device=self.device)

    def count_truncated(self, prompts: list[str]) -> int:
        return 0

    def park(self, *, text: bool = False, autoencoder: bool = False) -> None:
        """Nothing to do: the code that counts knows which parts are parked."""

    def save(self, folder: Any, card: str | None = None, *, single_file: bool = False) -> None:
        raise NotImplementedError("a model without numbers")
