"""The figures of an evaluation by the size of the images, if these have several sizes."""

from collections.abc import Iterator, Mapping

from ortho_core.evaluation.metrics import REWARD, Estimate, Metrics, metric
from ortho_core.report.page import Block, Heading, Table
from rayjobs.reports.models import decimals_of, estimate_cell, metric_cell
from rayjobs.reports.summaries import Evaluation
from rayjobs.reports.words import counted, listed


def by_size(evaluation: Evaluation, labels: Mapping[str, str]) -> Iterator[Block]:
    """A table for each figure that is a mean over rows, and in which figures the sizes differ; nothing with one size."""
    sizes = evaluation.by_size
    if len(sizes) < 2:
        return
    yield Heading("By size of the images")
    model = [*labels][-1]
    different = [
        metric(name).title for name in figures(sizes) if differs({s: each[model] for s, each in sizes.items()}, name)
    ]
    said = (
        f"The sizes differ, with intervals that do not overlap, in {listed(different)}."
        if different
        else "The intervals of all sizes overlap in every figure."
    )
    left = evaluation.rows - sum(next(iter(next(iter(each.values())).values())).count for each in sizes.values())
    few = f" {counted(left, 'row is', 'rows are')} of sizes with too few rows for figures." if left else ""
    yield f"Figures of {labels[model]}. {said} Distances between sets of images, as KID, need more rows than a size has.{few}"
    names = figures(sizes)
    decimals = decimals_of([each[model] for each in sizes.values()], names)
    rows = [
        [size, *(estimate_cell(each[model], name, decimals[name]) for name in names), f"{count_of(each[model]):,}"]
        for size, each in sizes.items()
    ]
    yield Table(["size", *(metric_cell(name) for name in names), "n"], rows)


def figures(sizes: Mapping[str, Metrics]) -> list[str]:
    """The figures that every size has, of its last model: those of single images."""
    usual = ("latent_mse", "psnr", "ssim", "lpips", "drift")
    each = [list(models.values())[-1] for models in sizes.values()]
    names = [*usual, *(name for name in each[0] if name.startswith(REWARD))]
    return [name for name in names if all(name in have for have in each)]


def differs(sizes: Mapping[str, Mapping[str, Estimate]], name: str) -> bool:
    """Whether the intervals of two sizes do not overlap."""
    estimates = [each[name] for each in sizes.values()]
    return max(each.low for each in estimates) > min(each.high for each in estimates)


def count_of(figures: Mapping[str, Estimate]) -> int:
    return next(iter(figures.values())).count
