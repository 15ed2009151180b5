"""The figures of an evaluation: their names in files, their titles, the better direction and their meaning."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

#: Prefix of the figure of a reward, followed by the reward's name.
REWARD = "reward_"


@dataclass(frozen=True)
class Estimate:
    """A figure over `count` samples, with the ends of its 95 % interval."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        """The text of a table on a terminal: `0.191 [0.185, 0.197]`."""
        return f"{self.value:.4g} [{self.low:.3g}, {self.high:.3g}]"


#: The figures of one model by name, and the figures of several models by model.
Figures = Mapping[str, Estimate]
Metrics = Mapping[str, Figures]


@dataclass(frozen=True)
class Metric:
    """Title, better direction and meaning of a figure."""

    title: str
    better: Literal["lower", "higher", "neither"]
    about: str

    @property
    def arrow(self) -> str:
        return {"lower": "↓", "higher": "↑", "neither": ""}[self.better]


#: All figures but rewards, in the order of files and of the table on a terminal.
METRICS = {
    "latent_mse": Metric(
        "latent MSE", "lower", "of the closest image, at the noise assigned to it, to the held-out target"
    ),
    "psnr": Metric("PSNR dB", "higher", "of the same image"),
    "ssim": Metric("SSIM", "higher", "of the same image"),
    "lpips": Metric("LPIPS", "lower", "of the same image"),
    "drift": Metric("drift", "lower", "RMS pixel distance from the base model's image at the same plain noise"),
    "kid": Metric("KID", "lower", "of images at plain noise to the held-out targets, unbiased"),
    "fid": Metric("FID", "lower", "of images at plain noise to the held-out targets; few samples raise it"),
    "cmmd": Metric("CMMD", "lower", "of images at plain noise to the held-out targets, in CLIP embeddings"),
    "kid_base": Metric("KID to base", "lower", "of images at plain noise to the base model's images at other noise"),
    "fid_base": Metric("FID to base", "lower", "the same, as FID"),
    "cmmd_base": Metric("CMMD to base", "lower", "the same, as CMMD"),
    "precision": Metric("precision", "higher", "share of images at plain noise that lie among the targets"),
    "recall": Metric("recall", "higher", "share of the targets that lie among images at plain noise"),
    "sharpness": Metric(
        "sharpness", "neither", "Laplacian energy of images at plain noise over that of the targets; 1: as sharp"
    ),
    "diversity": Metric("diversity", "neither", "mean RMS pixel distance between images of one prompt"),
}


def metric(name: str) -> Metric:
    """The metric with this name; `reward_NAME` for any reward. Raises KeyError for an unknown name."""
    if name.startswith(REWARD):
        reward = name.removeprefix(REWARD)
        title = "CLIP score" if reward == "clip" else reward
        return Metric(title, "higher", f"{reward} of images at plain noise with their prompts")
    return METRICS[name]


def known_metrics(metrics: Mapping[str, Collection[str]]) -> list[str]:
    """The names of all figures of the models, in the order of files and of the table on a terminal."""
    names = {name for figures in metrics.values() for name in figures}
    return [name for name in METRICS if name in names] + sorted(name for name in names if name.startswith(REWARD))


def cell(figures: Figures, name: str) -> str:
    """The text of a figure for a table on a terminal; a dash if it was not measured."""
    return str(figures[name]) if name in figures else "–"
