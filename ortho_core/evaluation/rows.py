"""The record of each held-out row: its closest image, images at plain noise, and the scores of these images.

Axes: B images, C × H × W noise maps, 3 × Y × X pixels.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from ortho_core.estep.engine import Found
from ortho_core.estep.objective import Reconstruction
from ortho_core.estep.rows import ROWS_ENCODED_TOGETHER, PairRows
from ortho_core.evaluation.judge import Judge
from ortho_core.evaluation.samples import mean_pairwise_distance, sample, to_png
from ortho_core.framing.framing import Framing
from ortho_core.generators.base import at_size
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.losses import mean_square
from ortho_core.noise.seeded import noise_seed
from ortho_core.pairs.decoding import Decode, decode_in_threads
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Pair
from ortho_core.pictures import to_bytes
from ortho_core.records.parts import FRAME_COLUMNS

ROW_FIGURES = ("latent_mse", "psnr", "ssim", "lpips")
#: Feature columns of the row's sample, and in the base model's records also of the target and of a sample at other noise.
FEATURES = [f"{of}{kind}" for of in ("", "target_", "other_") for kind in ("features", "cmmd_features")]
EVALUATION_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("prompt", pa.string()),
        ("image", pa.string()),
        ("pixels", pa.uint64()),
        *((name, pa.int32()) for name in FRAME_COLUMNS),
        ("evaluations", pa.int32()),
        *((name, pa.float32()) for name in ROW_FIGURES),
        ("rewards", pa.map_(pa.string(), pa.float32())),
        *((name, pa.list_(pa.float32())) for name in FEATURES),
        ("closest", pa.binary()),
        ("sample", pa.binary()),
        ("other", pa.binary()),
        ("target", pa.binary()),
    ]
)
#: Diversity: number of prompts, and samples of each prompt that are compared with one another.
SPREAD_PROMPTS, SPREAD_SEEDS = 8, 8


class EvaluationRows(PairRows):
    """Held-out rows as targets of the E-step, and the records of their evaluation.

    All figures but the latent MSE are measured on uint8 images. Each model makes two samples of a row, at plain noises that
    are the same for every model. Figures use the first sample, the second is only shown. Features of the targets and of the
    base model's second samples are computed once, with the base model.
    """

    def __init__(
        self,
        objective: Reconstruction,
        prompts: PromptCache,
        pairs: PairSet,
        judge: Judge,
        seed: int,
        is_base: bool,
        decode: Decode = decode_in_threads,
        framing: Framing | None = None,
    ) -> None:
        super().__init__(objective, prompts, pairs, False, decode, framing)
        self.judge, self.seed, self.is_base = judge, seed, is_base

    def kept(self, images: Tensor, targets: Tensor) -> list[Any]:
        """Each row's target image, uint8, and its latent, on the CPU."""
        return list(zip(to_bytes(images), targets.cpu(), strict=True))

    def columns(
        self, found: Sequence[Found], pairs: Sequence[Pair], kept: Sequence[Any], noise: Tensor, base: Tensor
    ) -> Iterator[dict[str, Any]]:
        for start in range(0, len(pairs), ROWS_ENCODED_TOGETHER):
            part = slice(start, start + ROWS_ENCODED_TOGETHER)
            yield from self._columns(pairs[part], kept[part], noise[part])

    @torch.no_grad()
    def _columns(self, pairs: Sequence[Pair], kept: Sequence[Any], noise: Tensor) -> Iterator[dict[str, Any]]:
        """The records of a few rows with images of one size.

        All batches are filled up to equally many rows: a row's numbers do not depend on the others.
        """
        generator, judge, missing = self.objective.generator, self.judge, ROWS_ENCODED_TOGETHER - len(pairs)
        pairs, kept = [*pairs, *[pairs[-1]] * missing], [*kept, *[kept[-1]] * missing]
        noise = torch.cat([noise, noise[-1:].expand(missing, -1, -1, -1)]).to(generator.device)
        texts = [pair.prompt for pair in pairs]
        frames = [pair.frame for pair in pairs if pair.frame is not None]
        condition = self.prompts(texts).framed([self.framing.told(frame) for frame in frames])

        def closest_of(part: slice) -> tuple[Tensor, Tensor]:
            latents = generator.denoise(noise[part], condition[part])
            return latents.cpu(), to_bytes(generator.decode(latents))

        latents, closest = (torch.cat(parts) for parts in zip(*self.at_once(len(noise), closest_of), strict=True))
        target = torch.stack([image for image, _ in kept])
        figures = {"latent_mse": mean_square(latents, torch.stack([latent for _, latent in kept]))}
        figures |= judge.compare(self._seen(closest), self._seen(target))
        samples, others = self._samples(pairs, "evaluate"), self._samples(pairs, "evaluate", "other")
        seen = judge.look(self._seen(samples), texts)
        features = dict(seen.features)
        if self.is_base:
            for of, images in (("target_", target), ("other_", others)):
                features |= {of + name: values for name, values in judge.look(self._seen(images)).features.items()}
        for i in range(len(pairs) - missing):
            yield {
                **{name: float(values[i]) for name, values in figures.items()},
                "rewards": [(name, float(values[i])) for name, values in seen.rewards.items()],
                **{name: values[i].numpy() for name, values in features.items()},
                "closest": to_png(closest[i]),
                "sample": to_png(samples[i]),
                "other": to_png(others[i]),
                "target": to_png(target[i]) if self.is_base else None,
            }

    def _samples(self, pairs: Sequence[Pair], *names: str) -> Tensor:
        """uint8 images of the rows' prompts. Each row has its own base noise, which is the same for every model."""
        seeds = [noise_seed(self.seed, *names, pair.sample_id) for pair in pairs]
        frame = pairs[0].frame
        usual = self.objective.generator
        generator = usual if frame is None else at_size(usual, frame.size)
        return sample(generator, self.prompts, [pair.prompt for pair in pairs], seeds, self.at_once)

    def _seen(self, images: Tensor) -> Tensor:
        """uint8 images as float32 in [0, 1] on the generator's device, the input of the judge."""
        return images.to(self.objective.generator.device).float() / 255

    def spread(self, texts: Sequence[str]) -> list[float]:
        """The diversity of each prompt: the mean RMS pixel distance between its samples."""
        seeds = [noise_seed(self.seed, "diversity", i) for i in range(SPREAD_SEEDS)]
        generator = self.objective.generator
        images = (sample(generator, self.prompts, [text] * SPREAD_SEEDS, seeds, self.at_once) for text in texts)
        return [mean_pairwise_distance(one) for one in images]
