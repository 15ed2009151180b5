"""The M-step loss: fine-tune at the batch's noise; preserve terms keep the outputs at random noise as the starting model's.

Axes: B images of the reconstruction terms, P preserve rows, C × H × W noise, c × h × w latents, 3 × Y × X images.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ortho_core.errors import UserError
from ortho_core.generators.protocol import Condition, OneStepGenerator
from ortho_core.losses import mean_absolute, mean_square
from ortho_core.mstep.config import SftConfig
from ortho_core.mstep.teacher import Teacher

#: The scalars of a step, in the order of the logs; `LossTerms` has them by name.
TERMS = ("loss", "latent", "pixel", "preserve_latent", "preserve_pixel")


@dataclass(frozen=True)
class SftBatch:
    """The data of one step: the noise (matched, or random for direct SFT), the targets, and fresh noise ε'."""

    noise: Float[Tensor, "B C H W"]
    condition: Condition
    target_latents: Float[Tensor, "B c h w"]
    #: Only needed for the pixel term.
    images: Float[Tensor, "B 3 Y X"] | None = None
    #: ε' and its prompts, for the preserve terms.
    preserve_noise: Float[Tensor, "P C H W"] | None = None
    preserve_condition: Condition | None = None
    #: The weight of each preserve row in the means of the preserve terms (None: 1 / P); 0 for rows that fill up a share.
    preserve_weights: Float[Tensor, " P"] | None = None
    #: The weight of each row in the sums of the reconstruction terms (None: 1 / B), for rows of an update with images of several
    #: sizes; 0 for rows that fill up a share.
    weights: Float[Tensor, " B"] | None = None

    def split(self, parts: int) -> list["SftBatch"]:
        """The batch in equal micro-batches; `parts` divides both B and P."""
        B, P = len(self.noise), len(self.preserve_noise) if self.preserve_noise is not None else 0
        micro_batches = []
        for k in range(parts):
            mine, fresh = (slice(k * n // parts, (k + 1) * n // parts) for n in (B, P))
            micro_batches.append(
                SftBatch(
                    self.noise[mine],
                    self.condition[mine],
                    self.target_latents[mine],
                    self.images[mine] if self.images is not None else None,
                    self.preserve_noise[fresh] if self.preserve_noise is not None else None,
                    self.preserve_condition[fresh] if self.preserve_condition is not None else None,
                    self.preserve_weights[fresh] if self.preserve_weights is not None else None,
                    self.weights[mine] if self.weights is not None else None,
                )
            )
        return micro_batches


def sft_loss(
    generator: OneStepGenerator, teacher: Teacher | None, batch: SftBatch, config: SftConfig
) -> dict[str, Tensor]:
    """The M-step objective and its terms as scalars: `loss`, `latent`, `pixel`, `preserve_latent`, `preserve_pixel`.

    loss = w_lat·mean((f_θ(ε̂,c) - E(x))²) + w_pix·mean|D f_θ(ε̂,c) - x| + w_pl·mean((f_θ(ε',c) - f_0(ε',c))²)
    + w_pp·mean|D f_θ(ε',c) - D f_0(ε',c)|, with ε̂ = `batch.noise`. Both noises share one call of the network. With
    `preserve_differences`, f(ε',c) is replaced by f(ε',c) - f(ε'',c), where ε' and ε'' are the noises of preserve rows 2i and
    2i + 1, which have the same prompt; the same for D f. The result also has `rows`: the reconstruction terms of each row (B,),
    which show the row that caused an error. Raises UserError if the batch lacks inputs of a term.
    """
    B = len(batch.noise)
    zero = batch.noise.new_zeros(())
    noise, condition = batch.noise, batch.condition
    preserve = config.preserves and teacher is not None
    if preserve:
        assert teacher is not None
        if batch.preserve_noise is None or batch.preserve_condition is None:
            raise UserError(
                "the loss has preserve terms, but the batch has no preserve_noise and preserve_condition: give both, or "
                "MStepConfig(preserve_latent_weight=0, preserve_pixel_weight=0)"
            )
        with torch.no_grad(), teacher.standing_in(generator):
            before = generator.denoise(batch.preserve_noise, batch.preserve_condition)
        noise = torch.cat([noise, batch.preserve_noise])
        condition = Condition.cat([condition, batch.preserve_condition])
    latents = generator.denoise(noise, condition)
    matched, fresh = latents[:B], latents[B:]
    rows = mean_square(matched, batch.target_latents)
    terms = {"latent": _over_rows(rows, batch), "pixel": zero, "preserve_latent": zero, "preserve_pixel": zero}
    if config.pixel_l1_weight:
        if batch.images is None:
            raise UserError("the pixel term needs the target images: give the batch `images`, or pixel_l1_weight=0")
        pixel = mean_absolute(generator.decode(matched), batch.images)
        terms["pixel"] = _over_rows(pixel, batch)
        rows = rows + pixel
    if preserve:
        terms["preserve_latent"] = _mean(mean_square(held(fresh, config), held(before, config)), batch)
        if config.preserve_pixel_weight:
            with torch.no_grad():
                images_before = generator.decode(before)
            moved = mean_absolute(held(generator.decode(fresh), config), held(images_before, config))
            terms["preserve_pixel"] = _mean(moved, batch)
    terms["loss"] = (
        config.latent_loss_weight * terms["latent"]
        + config.pixel_l1_weight * terms["pixel"]
        + config.preserve_latent_weight * terms["preserve_latent"]
        + config.preserve_pixel_weight * terms["preserve_pixel"]
    )
    return {**terms, "rows": rows.detach()}


def held(outputs: Tensor, config: SftConfig) -> Tensor:
    """The values that the preserve terms compare: the outputs (P, ...), or the differences of each two rows, (P/2, ...)."""
    return outputs[0::2] - outputs[1::2] if config.preserve_differences else outputs


def _over_rows(values: Float[Tensor, " B"], batch: SftBatch) -> Float[Tensor, ""]:
    """The mean over the rows of the reconstruction terms, or their weighted sum."""
    if batch.weights is None:
        return values.mean()
    # Not multiplied by 0: a row that fills up may be infinite where it is counted, too.
    return torch.where(batch.weights > 0, values * batch.weights, 0.0).sum()


def _mean(values: Float[Tensor, " held"], batch: SftBatch) -> Float[Tensor, ""]:
    """The weighted mean over preserve rows, or over their differences. With these weights, the mean of the means of unequal
    shares is the mean over all rows.
    """
    if batch.preserve_weights is None:
        return values.mean()
    return (values * batch.preserve_weights.view(len(values), -1).sum(1)).sum()
