"""The noise space of a search's configuration."""

from ortho_core.errors import UserError
from ortho_core.estep.config import SearchConfig
from ortho_core.noise.spaces import Free, NoiseSpace, Rotations


def noise_space(search: SearchConfig, latent_shape: tuple[int, int, int]) -> NoiseSpace:
    """The noise space that is searched. Raises UserError if patches or regions do not divide the latent, or do not apply."""
    if search.transform == "free":
        if search.regions > 1:
            raise UserError(
                f"regions {search.regions} needs rotations, and transform free has none: leave out one of the two"
            )
        return Free(latent_shape)
    return Rotations(latent_shape, search.patch_size, search.regions)
