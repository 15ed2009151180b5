"""The variables of a noise optimiser: the parameters of the noise space, or fewer equivalent coordinates.

Axes: S slots, B images that enter or leave, C × H × W noise maps, m parameters and n coordinates per image, k directions.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from ortho_core.noise.few_patches import FewPatches
from ortho_core.noise.spaces import NoiseSpace, Rotations


@runtime_checkable
class Coordinates(Protocol):
    """The coordinates of the images in S slots; `slots` are slot numbers without repetition."""

    @property
    def count(self) -> int:
        """n."""
        ...

    @property
    def reach(self) -> float:
        """The norm of a step that moves the noise by about its own norm; no step should be longer."""
        ...

    @property
    def first_step(self) -> float:
        """A norm of the first step that works well for most images."""
        ...

    def enter(
        self, slots: Int[Tensor, " B"], base: Float[Tensor, "B C H W"], parameters: Float[Tensor, "B m"]
    ) -> Float[Tensor, "B n"]:
        """Put images into `slots`, with searches that start at these parameters. Returns the coordinates of the start."""
        ...

    def noise(self, base: Float[Tensor, "S C H W"], coordinates: Float[Tensor, "S n"]) -> Float[Tensor, "S C H W"]:
        """The noise map of every slot; differentiable in the coordinates."""
        ...

    def pull_back(
        self, slots: Int[Tensor, " B"], base: Float[Tensor, "B C H W"], directions: Float[Tensor, "k C H W"]
    ) -> Float[Tensor, "B n k"]:
        """The gradient of ⟨direction, noise⟩ in the coordinates, at the base noise, for images that are in `slots`."""
        ...

    def parameters(self, slots: Int[Tensor, " B"], coordinates: Float[Tensor, "B n"]) -> Float[Tensor, "B m"]:
        """The parameters of the images in `slots` at these coordinates."""
        ...


class Parameters:
    """The parameters of a space, used directly as coordinates."""

    def __init__(self, space: NoiseSpace) -> None:
        self.space = space

    @property
    def count(self) -> int:
        return self.space.parameters

    @property
    def reach(self) -> float:
        return self.space.reach

    @property
    def first_step(self) -> float:
        return self.space.first_step

    def enter(
        self, slots: Int[Tensor, " B"], base: Float[Tensor, "B C H W"], parameters: Float[Tensor, "B m"]
    ) -> Float[Tensor, "B m"]:
        return parameters

    def noise(self, base: Float[Tensor, "S C H W"], coordinates: Float[Tensor, "S m"]) -> Float[Tensor, "S C H W"]:
        return self.space.noise(base, coordinates)

    def pull_back(
        self, slots: Int[Tensor, " B"], base: Float[Tensor, "B C H W"], directions: Float[Tensor, "k C H W"]
    ) -> Float[Tensor, "B m k"]:
        return self.space.pull_back(base, directions)

    def parameters(self, slots: Int[Tensor, " B"], coordinates: Float[Tensor, "B m"]) -> Float[Tensor, "B m"]:
        return coordinates


def coordinates(space: NoiseSpace, like: Float[Tensor, "S C H W"]) -> Coordinates:
    """The smaller coordinates of `space` for each slot; `like` defines the shapes, the dtype and the device."""
    if isinstance(space, Rotations) and FewPatches.fits(space, tuple(like.shape[1:])):
        return FewPatches(space, like)
    return Parameters(space)
