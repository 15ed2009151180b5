"""The options of `ortho verify-noise`."""

from pydantic import BaseModel, ConfigDict

from ortho_core.marks import conduct, decides
from ortho_core.storage.location import OutputPath


class VerifyNoiseJob(BaseModel):
    """Compare the Gaussian statistics of plain noise ε with those of rotated noise Qε, with a random rotation Q for each map."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: OutputPath = conduct(description="folder for verify_noise.json and the figures")
    channels: int = decides(4, ge=1, description="channels of the noise map")
    size: int = decides(64, ge=1, description="height and width of the noise map")
    patch_size: int = decides(2, ge=1, description="side of the rotated patches")
    num_samples: int = decides(64, ge=2, description="how many noise maps")
    batch_size: int = decides(16, ge=1, description="maps rotated at once")
    seed: int = decides(0, ge=0, description="decides the noise and the rotations")
