"""The search for one row in this process, for `ortho invert` and `ortho reward --prompt`, and the folder that it writes."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ortho_core.errors import RunFailed, UserError
from ortho_core.estep.config import SearchConfig
from ortho_core.estep.engine import Engine, Found
from ortho_core.estep.objective import Objective
from ortho_core.estep.queue import requests_of
from ortho_core.estep.space import noise_space
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.noise.gaussianity import diagnostics, verdict
from ortho_core.pictures import labelled_rows, to_picture
from ortho_core.report.charts import Chart
from ortho_core.report.plots import draw_charts
from ortho_core.storage.folders import replace_folder
from rayjobs.verb.console import summary_json

META = "meta.json"


@dataclass(frozen=True)
class OneSearch:
    """The result for one row. The noise maps are (1, C, H, W)."""

    config: SearchConfig
    result: Found
    base: Tensor
    noise: Tensor

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors from which the noise can be rebuilt."""
        tensors = {"noise": self.noise, "base_noise": self.base}
        if self.config.transform == "orthogonal":
            tensors["skew"] = self.result.parameters[None]
        return tensors


def check_folder(out: Path, command: str) -> None:
    """Raises UserError unless the folder is empty or from an earlier search, which is replaced."""
    if out.exists() and any(out.iterdir()) and not (out / META).is_file():
        raise UserError(f"{out} is not empty and was not made by `ortho {command}`; choose another folder")


def search(
    generator: OneStepGenerator, config: SearchConfig, objective: Objective, seed: int, inputs: Mapping[str, Tensor]
) -> OneSearch:
    """Search for the one row of `inputs`. Raises RunFailed where a loss or gradient is not finite."""
    (result,) = Engine(generator, config, 1, objective).run(requests_of([0], [seed], inputs))
    if result.failed:
        raise RunFailed(f"{result.failure}; try --dtype float32")
    base = generator.base_noise([result.seed])
    noise = noise_space(config, generator.latent_shape).noise(base, result.parameters[None].to(base.device))
    return OneSearch(config, result, base, noise)


def write_folder(
    out: Path,
    search: OneSearch,
    meta: Mapping[str, Any],
    *,
    pictures: Mapping[str, Tensor],
    comparison: Mapping[str, Tensor],
    pixels: int,
    charts: tuple[str, Sequence[Chart]],
    tensors: Mapping[str, Tensor] | None = None,
    finish: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Replace `out` by the folder of a search, completely or not at all. Images are uint8 (1, 3, Y, X).

    `pictures` are saved by file name; `comparison` becomes one labelled sheet with images about `pixels` high; `charts` are a
    file name and the charts drawn into it. `tensors` are saved beside the noise, `meta` beside the entries that all searches
    have. `finish` is called with the folder when everything else is written.
    """
    result, patch_size = search.result, search.config.patch_size

    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        for name, images in pictures.items():
            (folder / name).parent.mkdir(exist_ok=True)
            to_picture(images[0]).save(folder / name)
        size = next(iter(comparison.values())).shape[-2]
        labelled_rows(dict(comparison), max(1, pixels // size)).save(folder / "comparison.png")
        draw_charts(charts[1], folder / charts[0])
        for when, noise in (("init", search.base), ("final", search.noise)):
            statistics, files = diagnostics(noise, patch_size, f"{when} noise")
            for suffix, content in files.items():
                (folder / f"orthogonal_gaussian_{when}{suffix}").write_bytes(content)
        saved = {**search.tensors, **(tensors or {})}
        save_file(
            {name: tensor.detach().float().cpu().contiguous() for name, tensor in saved.items()},
            folder / "best_input_noise.safetensors",
        )
        common = {
            "noise_seed": result.seed,
            "evaluations": result.evaluations,
            "gaussianity": verdict(statistics),
            "history": {name: values.tolist() for name, values in result.history.items()},
        }
        (folder / META).write_text(summary_json({**common, **meta}))
        finish(folder)

    if out.is_dir() and not any(out.iterdir()):
        shutil.rmtree(out)
    replace_folder(out, write)
