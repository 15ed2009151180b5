"""How much of the hand shows, and where: at plain noise, at held-out matched noise, at the noise that a model was trained on.

And two things that explain it: the *tilt*, how the base model already leans at the noise that its images were matched to, and
the drift at prompts that no pair has.

Axes: n rows, R resamples.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.study.laboratory import Laboratory
from benchmarks.study.style import MEASURES
from ortho_core.evaluation import statistics
from ortho_core.evaluation.metrics import Estimate
from ortho_core.evaluation.samples import from_png, rms_distance, sample
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.noise.seeded import noise_seed
from ortho_core.pictures import to_bytes
from rayjobs.evaluate.figures import Parts

#: Images of prompts that no pair has, that drift is measured on.
OTHERS = 256
#: Images computed at once.
TOGETHER = 64


@dataclass(frozen=True)
class Matched:
    """Rows and the noise that one model was trained on."""

    prompts: list[str]
    #: (n, C, H, W).
    noise: Tensor


def appearance(
    lab: Laboratory, evaluation: Path, models: Mapping[str, Path], matched: Mapping[str, Matched]
) -> dict[str, dict[str, dict[str, float]]]:
    """Of each model of a finished evaluation, the base first, its figures with their intervals.

    `slant` (or another measure), `slant_spread`, `slant_closed` at plain noise; `slant_heldout` and `slant_training` at matched
    noise; `slant_tilt`, the base model's at the training noise; `drift_others`.
    """
    parts = Parts.of(evaluation)
    base = parts.models[0]
    targets = _measured(lab, _pictures(parts, base, "target"))
    plain = {model: _measured(lab, _pictures(parts, model, "sample")) for model in parts.models}
    weights = statistics.resamples(parts.count, 0)
    first = load_generator(ModelFolder.open(models[base]))
    others = _others(lab, first)
    found: dict[str, dict[str, dict[str, float]]] = {"targets": _figures(targets, weights)}
    for model in parts.models:
        figures = _figures(plain[model], weights)
        closest = _measured(lab, _pictures(parts, model, "closest"))
        for name in lab.hand:
            figures[f"{name}_heldout"] = asdict(_mean(closest[name], weights))
            if model != base:
                closed = _closed(plain[model][name], plain[base][name], targets[name], weights)
                figures[f"{name}_closed"] = asdict(closed)
        if model != base:
            mine = load_generator(ModelFolder.open(models[model]))
            apart = rms_distance(_others(lab, mine), others)
            figures["drift_others"] = asdict(_mean(apart, statistics.resamples(len(apart), 0)))
            if model in matched:
                rows = matched[model]
                over = statistics.resamples(len(rows.noise), 0)
                for where, generator in (("training", mine), ("tilt", first)):
                    there = _measured(lab, images_at(generator, rows))
                    figures |= {f"{name}_{where}": asdict(_mean(there[name], over)) for name in lab.hand}
        found[model] = figures
    return found


@torch.no_grad()
def images_at(generator: OneStepGenerator, rows: Matched) -> Tensor:
    """uint8 images (n, 3, Y, X) of the rows' prompts at their noise."""
    cache, found = PromptCache(generator), []
    for start in range(0, len(rows.prompts), TOGETHER):
        part = slice(start, start + TOGETHER)
        condition = cache(rows.prompts[part])
        found.append(to_bytes(generator.decode(generator.denoise(rows.noise[part], condition))))
    return torch.cat(found)


def _others(lab: Laboratory, generator: OneStepGenerator) -> Tensor:
    prompts = lab.other_prompts()
    texts = [prompts[i % len(prompts)] for i in range(OTHERS)]
    seeds = [noise_seed(0, "others", i) for i in range(OTHERS)]
    return sample(generator, PromptCache(generator), texts, seeds, TOGETHER)


def _pictures(parts: Parts, model: str, column: str) -> Tensor:
    return torch.stack([from_png(png) for table in parts.tables(model, [column]) for png in table[column].to_pylist()])


def _measured(lab: Laboratory, images: Tensor) -> dict[str, np.ndarray]:
    """Each measure, (n,); a flat image, which leans nowhere, counts as upright."""
    return {name: np.nan_to_num(MEASURES[name](images)) for name in lab.hand}


def _figures(values: Mapping[str, np.ndarray], weights: np.ndarray) -> dict[str, dict[str, float]]:
    found = {}
    for name, each in values.items():
        found[name] = asdict(_mean(each, weights))
        mean = weights @ each / len(each)
        spread = np.sqrt(np.maximum(weights @ each**2 / len(each) - mean**2, 0))
        found[f"{name}_spread"] = asdict(statistics.around(float(each.std()), spread, len(each)))
    return found


def _mean(values: np.ndarray, weights: np.ndarray) -> Estimate:
    return statistics.mean_figure(values, weights)


def _closed(model: np.ndarray, base: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> Estimate:
    """Share of the way from the base's mean to the targets' that the model has gone."""
    moved, way = weights @ (model - base), weights @ (targets - base)
    value = float((model.mean() - base.mean()) / (targets.mean() - base.mean()))
    return statistics.around(value, moved / way, len(model))
