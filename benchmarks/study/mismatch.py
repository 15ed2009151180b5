"""Training sees assigned noise, sampling draws from N(0, I): what does the difference cost?

A model is sampled for the held-out prompts at plain noise, at the Gaussian that was fitted to the noise it was trained on
(its mean; its mean and covariance), and at that noise itself, dealt out among the prompts. If the assigned noise's departure
from N(0, I) cost anything, samples at the fitted Gaussian would be nearer to the targets than those at plain noise.

Axes: n training rows, B held-out rows, C × H × W noise maps, m = C·H·W numbers.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.study.laboratory import Laboratory
from benchmarks.study.tables import Estimate
from ortho_core.evaluation import statistics
from ortho_core.evaluation.features import Extractor, find_features
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.noise.gaussianity import departures, noise_statistics
from ortho_core.noise.seeded import noise_seed
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Pair
from ortho_core.pictures import to_bytes
from ortho_core.records.assignments import Assignments

LAWS = ("N(0, I)", "fitted mean", "fitted mean and covariance", "the assigned noise itself")


@dataclass(frozen=True)
class Fitted:
    """A Gaussian fitted to noise maps, its covariance shrunk towards the identity as Ledoit & Wolf (2004) say."""

    mean: Tensor
    root: Tensor

    @staticmethod
    def to(noise: Tensor) -> "Fitted":
        """From (n, C, H, W)."""
        flat = noise.flatten(1).double()
        n, m = flat.shape
        mean = flat.mean(0)
        centred = flat - mean
        sample = centred.mT @ centred / n
        scale = sample.diagonal().mean()
        distance = (sample - scale * torch.eye(m)).square().sum()
        noise_in_it = (centred.square().sum(1).square().sum() / n - sample.square().sum()) / n
        share = min(1.0, float(noise_in_it / distance))
        values, vectors = torch.linalg.eigh((1 - share) * sample + share * scale * torch.eye(m))
        return Fitted(mean, vectors * values.clamp_min(0).sqrt() @ vectors.mT)

    def shifted(self, plain: Tensor) -> Tensor:
        """Maps of N(0, I) moved by the mean."""
        return (plain.flatten(1) + self.mean.float()).view_as(plain)

    def drawn(self, plain: Tensor) -> Tensor:
        """Maps of N(0, I) turned into maps of this Gaussian."""
        return (plain.flatten(1).double() @ self.root + self.mean).float().view_as(plain)


def laws(plain: Tensor, assigned: Tensor, seed: int) -> dict[str, Tensor]:
    """The noise (B, C, H, W) of each law."""
    fitted = Fitted.to(assigned)
    dealt = np.random.default_rng(seed).choice(len(assigned), len(plain), replace=len(assigned) < len(plain))
    return dict(zip(LAWS, (plain, fitted.shifted(plain), fitted.drawn(plain), assigned[dealt]), strict=True))


@torch.no_grad()
def features_at(generator: OneStepGenerator, judge: Extractor, prompts: list[str], noise: Tensor) -> np.ndarray:
    """(B, D) of the images at a noise."""
    found = []
    for start in range(0, len(prompts), 64):
        part = slice(start, start + 64)
        images = generator.decode(generator.denoise(noise[part], generator.encode_prompts(prompts[part])))
        found.append(judge(to_bytes(images).float() / 255).numpy())
    return np.concatenate(found)


def kids(lab: Laboratory, seed: int, models: Mapping[str, tuple[Path, Path]]) -> dict[str, dict[str, dict[str, float]]]:
    """Of each model, given its folder and the assignments it was trained on, the KID under each law; and, under
    "departures", by how many null standard deviations those assignments depart from N(0, I).
    """
    judge = find_features(str(lab.judge()), Path("models")).load("cpu", {})
    source = PairSet(str(lab.heldout()))
    rows = [row for shard in source.shards(64) for row in source.read(shard) if isinstance(row, Pair)][: lab.judged]
    prompts = [row.prompt for row in rows]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, (folder, assignments) in models.items():
        generator = load_generator(ModelFolder.open(folder))
        if not found:
            targets = np.stack(source.images(rows, generator.image_size)).transpose(0, 3, 1, 2)
            wanted = judge(torch.from_numpy(targets).float() / 255).numpy()
            weights = statistics.resamples(len(rows), 0)
        plain = generator.base_noise([noise_seed(0, "mismatch", row.sample_id) for row in rows])
        made = Assignments(assignments)
        assigned = made.noise(range(len(made)), generator.latent_shape)
        found[name] = {
            law: asdict(statistics.kid(features_at(generator, judge, prompts, noise), wanted, weights))
            for law, noise in laws(plain, assigned, seed).items()
        }
        found[name]["departures"] = departures(noise_statistics(assigned, made.plan.noise.patch_size))
    return found


def mismatch_table(found: list[dict[str, dict[str, dict[str, float]]]]) -> str:
    """Markdown, over seeds."""
    lines = [
        "| | " + " | ".join(f"KID at {law}" for law in LAWS) + " | largest departure |",
        "|---" * (len(LAWS) + 2) + "|",
    ]
    for name in found[0]:
        cells = []
        for law in LAWS:
            cells.append(str(Estimate.of([one[name][law] for one in found])))
        most = next(iter(found[0][name]["departures"].items()))
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {most[0]}, {most[1]:.0f} |")
    return "\n".join(lines)
