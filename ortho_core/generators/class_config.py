"""The configuration of a class-conditional generator."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ortho_core.errors import UserError
from ortho_core.text.parsing import first_fault


class ClassConfig(BaseModel):
    """The content of `config.json`: everything that determines the network's shape."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["class-conditional"] = "class-conditional"
    #: The classes by number; prompts are their names.
    classes: tuple[str, ...] = Field(min_length=1)
    #: (C, H, W); H = W = 1 means flat noise.
    noise_shape: tuple[int, int, int]
    #: (c, Y, X); c = 1 is grey.
    image_shape: tuple[int, int, int]
    #: Channels of the blocks: two on the coarsest grid, then one after each doubling.
    widths: tuple[int, ...] = Field((64, 64, 48), min_length=2)
    condition: int = Field(64, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> "ClassConfig":
        (_, H, W), (c, Y, X) = self.noise_shape, self.image_shape
        if min(*self.noise_shape, Y, X) < 1 or c not in (1, 3):
            raise ValueError("noise_shape must be (C, H, W) and image_shape (1 or 3, Y, X), all positive")
        if any(width % GROUPS or width < 1 for width in self.widths):
            raise ValueError(f"widths must be multiples of {GROUPS}")
        if not self.flat and (H * self.scale < Y or W * self.scale < X):
            raise ValueError(
                f"a noise map of {H}×{W} grows to {H * self.scale}×{W * self.scale} pixels, smaller than {Y}×{X} images: "
                "give a larger map, or flat noise (n,1,1)"
            )
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("two classes have the same name")
        return self

    @property
    def flat(self) -> bool:
        return self.noise_shape[1:] == (1, 1)

    @property
    def scale(self) -> int:
        """Pixels per cell of the coarsest grid, along one side; the output layer makes the last doubling."""
        return int(2 ** (len(self.widths) - 1))

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the coarsest grid."""
        _, Y, X = self.image_shape
        return (-(-Y // self.scale), -(-X // self.scale)) if self.flat else self.noise_shape[1:]

    @staticmethod
    def parse(content: Mapping[str, object], file: Path) -> "ClassConfig":
        """Validate `content`, which was read from `file`. Raises UserError, naming the file, if it is invalid."""
        try:
            return ClassConfig.model_validate(content)
        except ValidationError as error:
            raise UserError(f"{file} is not valid for a class-conditional generator: {first_fault(error)}") from error


#: Number of groups of the group normalisation; widths are multiples of it.
GROUPS = 8
