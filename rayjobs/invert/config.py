"""The options of `ortho invert`."""

from ortho_core.estep.config import AssignConfig
from ortho_core.generators.lora_config import LoraList
from ortho_core.marks import conduct, decides, resolved
from ortho_core.pairs.rows import ImageLimits
from ortho_core.storage.location import LocalPath, ModelPath, OutputPath
from rayjobs.verb.image_size import SizeSettings
from rayjobs.verb.precision import Precision
from rayjobs.verb.resources import DeviceSettings


class InvertJob(AssignConfig, Precision, DeviceSettings, ImageLimits, SizeSettings):
    """Find the noise that a model maps closest to one image."""

    prompt: str = decides(min_length=1, description="the image's prompt")
    target_image: LocalPath = resolved(description="the target: an image file")
    model: ModelPath = resolved(description="model: a diffusers folder, a LoRA folder, or a single-file checkpoint")
    lora: LoraList = resolved(
        (), description="LoRAs to add to the model's weights: FILE[:WEIGHT],FILE[:WEIGHT], of diffusers or kohya format"
    )
    out: OutputPath = conduct(
        description="folder for pictures, curves and the noise; replaced if an earlier invert made it"
    )
    seed: int = decides(0, ge=0, description="decides the base noise")
    # Off here: measuring the sensitivity takes more evaluations than the search for one image.
    sensitivity_rank: int = decides(
        0, ge=0, description="lbfgs: noise directions of the first curvature model (0: none)"
    )
