"""The adapters by the class of their pipeline."""

from ortho_core.errors import UserError
from ortho_core.generators.pipelines.adapter import PipelineAdapter
from ortho_core.generators.pipelines.flux import Flux
from ortho_core.generators.pipelines.sana_sprint import SanaSprint
from ortho_core.generators.pipelines.stable_diffusion import StableDiffusion, StableDiffusionXL

ADAPTERS: dict[str, PipelineAdapter] = {
    adapter.kind: adapter for adapter in (StableDiffusion(), StableDiffusionXL(), SanaSprint(), Flux())
}


def adapter_of(pipeline: object) -> PipelineAdapter:
    """The adapter of a loaded pipeline. Raises UserError, naming the accepted classes, if there is none for its class."""
    kind = type(pipeline).__name__
    if kind not in ADAPTERS:
        raise UserError(f"{kind} is no known kind of pipeline; accepted: {', '.join(ADAPTERS)}")
    return ADAPTERS[kind]
