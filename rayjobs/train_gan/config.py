"""The options of `ortho train-gan`."""

from typing import Annotated, Literal

from pydantic import BeforeValidator

from ortho_core.generators.fitting.config import FitConfig
from ortho_core.marks import conduct, decides, resolved
from ortho_core.storage.location import OutputPath, PairsLocation
from rayjobs.training.config import TrainingSettings


def _numbers(value: object) -> object:
    """`4,8,8` or `64` as a tuple."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [value] if isinstance(value, int) else value


class TrainGanJob(FitConfig, TrainingSettings):
    """Train a small one-step generator on labelled images. Its prompts are the names of the classes."""

    data: Literal["mnist", "fashion-mnist", "cifar10", "any"] = decides(
        description="the data set, which decides classes and image size; any: the classes are the prompts of the set"
    )
    root: PairsLocation = resolved(
        description="folder or URL of the set: IDX files, CIFAR-10's binary batches, PNG sheets, Parquet, one folder per class, "
        "or any pair set"
    )
    test_split: bool = decides(False, description="train on the test split instead of the training split")
    out: OutputPath = conduct(
        description="folder for the generator, pictures and curves; the same command again resumes"
    )
    noise_shape: Annotated[tuple[int, ...], BeforeValidator(_numbers)] = decides(
        (4, 8, 8), description="C,H,W of the noise map; one number n: flat noise, a map (n, 1, 1) for patch size 1"
    )
    widths: Annotated[tuple[int, ...], BeforeValidator(_numbers)] = decides(
        (32, 32, 16),
        description="channels of the network's blocks: two on the coarsest grid, then one after each doubling of the size",
    )
    image_size: int | None = decides(
        None,
        ge=4,
        description="pixels along a side (none: that of the set; with --data any the height of the first image)",
    )
    epochs: int = decides(2, ge=1, description="passes over the images")
    batch_size: int = decides(64, ge=1, description="images of one update, over all workers")
    checkpoint_every: int = conduct(200, ge=1, description="updates between resumable states")
    log_every: int = conduct(10, ge=1, description="updates between entries of the log")
    seed: int = decides(0, ge=0, description="decides the first weights, the order of images and every noise")

    @property
    def title(self) -> str:
        """The name of the run for people."""
        return self.out.name

    @property
    def groups_per_update(self) -> int:
        """Groups in one update, over all workers."""
        return self.batch_size // self.group_size

    def fit_config(self) -> FitConfig:
        return FitConfig(**{name: getattr(self, name) for name in FitConfig.model_fields})
