"""Parts of a report about models that were judged: pictures in rows, the table with intervals, fit against drift, sentences.

`labels` gives each model the name that the report calls it by, and the order; `base` is the model that the others started
from.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Literal

from ortho_core.evaluation.metrics import REWARD, Estimate, Figures, Metrics, known_metrics, metric
from ortho_core.pairs.rows import row_name
from ortho_core.pictures import load_sheet
from ortho_core.report.charts import COLOURS, Chart, Series
from ortho_core.report.page import Cell, PictureRows, Table
from ortho_core.storage.store import Store
from rayjobs.reports.parts import Accounted, Phase, quarantine_reasons
from rayjobs.reports.summaries import Evaluation
from rayjobs.reports.words import counted, listed

#: Groups of the comparison, by what a metric is of; rewards go with the second.
METRIC_GROUPS = {
    "Closest image to each held-out target, at newly assigned noise": ("latent_mse", "psnr", "ssim", "lpips"),
    "Images at random noise, what a user of the model sees": (
        "kid",
        "fid",
        "cmmd",
        "precision",
        "recall",
        "sharpness",
        "diversity",
    ),
    "How far from the base model": ("drift", "kid_base", "fid_base", "cmmd_base"),
}
#: Of the distances between sets of images, the one that a sentence names: the first that was measured.
DISTANCES = ("kid", "cmmd", "fid")


def picture_rows(folder: Path, evaluation: Evaluation, stems: Mapping[str, Path]) -> list[PictureRows]:
    """The images at random noise, and the closest ones, under the targets.

    From the contact sheets that evaluations left: `folder` is that of the targets' evaluation, `stems` are paths of sheets by
    the models' labels, without `-samples.png` and `-closest.png`.
    """
    prompts = first_rows(folder / "evaluation.parquet", evaluation.base)

    def rows(kind: str, caption: str) -> PictureRows:
        sheets = {"held-out target": folder / "pictures" / "targets.png"}
        sheets |= {label: stem.with_name(f"{stem.name}-{kind}.png") for label, stem in stems.items()}
        images = {label: load_sheet(file, evaluation.image_size)[: evaluation.rows] for label, file in sheets.items()}
        return PictureRows.of(images, caption, prompts)

    near = (
        f"The closest image that each model can make to a held-out target, {evaluation.evaluations_per_image} evaluations of "
        "noise assignment per image."
    )
    fresh = "The same prompts at random noise, one noise per column and the same for each model."
    return [rows("closest", near), rows("samples", fresh)]


def first_rows(table: Path, base: str, count: int = 16) -> list[str]:
    """Prompt and image of the first rows that were judged; none if the table is not there."""
    import pyarrow.parquet as pq

    found: list[str] = []
    if table.is_file():
        for batch in pq.ParquetFile(table).iter_batches(columns=["model", "sample_id", "prompt", "image"]):
            mine = (row for row in batch.to_pylist() if row["model"] == base)
            found += [f"{row['prompt']} · {row_name(row['image'], row['sample_id'])}" for row in mine]
            if len(found) >= count:
                break
    return found[:count]


def places(estimates: Sequence[Estimate]) -> int:
    """Decimals that show two digits of a typical interval's width."""
    widths = [e.high - e.low for e in estimates if e.high > e.low]
    if not widths:
        return 3
    return max(0, min(6, 1 - math.floor(math.log10(median(widths)))))


def words(estimate: Estimate, decimals: int | None = None) -> str:
    return f"{estimate.value:.{places([estimate]) if decimals is None else decimals}f}"


def interval(estimate: Estimate, decimals: int) -> str:
    return f"[{estimate.low:.{decimals}f}, {estimate.high:.{decimals}f}]"


def estimate_cell(figures: Figures, name: str, decimals: int, mark: Literal["", "best", "tied"] = "") -> Cell | str:
    """A figure and its interval, or a dash where it was not measured."""
    if name not in figures:
        return "–"
    return Cell(words(figures[name], decimals), interval(figures[name], decimals), mark)


def decimals_of(models: Sequence[Figures], names: Sequence[str]) -> dict[str, int]:
    """Decimals of each figure in a table of several models."""
    return {name: places([figures[name] for figures in models if name in figures]) for name in names}


def clearly_better(a: Estimate, b: Estimate, better: str) -> bool:
    """Whether the interval of `a` is beyond that of `b`, on the better side."""
    return a.high < b.low if better == "lower" else a.low > b.high


def marks(metrics: Metrics, name: str, base: str) -> dict[str, Literal["best", "tied"]]:
    """Of the models but `base`: the best in a metric where its interval is beyond the next best's, else those tied with it."""
    better = metric(name).better
    have = {m: figures[name] for m, figures in metrics.items() if m != base and name in figures}
    if better == "neither" or len(have) < 2:
        return {}
    first = (min if better == "lower" else max)(have, key=lambda m: have[m].value)
    tied = [m for m in have if m != first and not clearly_better(have[first], have[m], better)]
    return dict.fromkeys((first, *tied), "tied") if tied else {first: "best"}


def comparison(metrics: Metrics, base: str, labels: Mapping[str, str]) -> Table:
    """One row per metric, one column per model: value, interval, sample count, and which is best or tied."""
    names = known_metrics(metrics)
    rows: list[Sequence[Cell | str] | str] = []
    grouped = {name for members in METRIC_GROUPS.values() for name in members}
    for group, members in METRIC_GROUPS.items():
        mine = [n for n in names if n in members]
        if "kid" in members:
            mine += [n for n in names if n not in grouped]
        rows += [group, *(comparison_row(metrics, name, base, labels) for name in mine)] if mine else []
    legend = [(metric(name).title, metric(name).about) for name in names]
    legend.append(("[low, high]", "95 % bootstrap interval; n counts the samples"))
    if len(metrics) > 2:
        legend.append(("best, tied", "among the fine-tuned models: tied where intervals overlap that of the best"))
    return Table(["", *labels.values(), "n"], rows, legend)


def comparison_row(metrics: Metrics, name: str, base: str, labels: Mapping[str, str]) -> list[Cell | str]:
    marked = marks(metrics, name, base)
    decimals = places([metrics[m][name] for m in labels if name in metrics[m]])
    cells = [estimate_cell(metrics[m], name, decimals, marked.get(m, "")) for m in labels]
    counts = sorted({metrics[m][name].count for m in labels if name in metrics[m]})
    samples = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return [metric_cell(name), *cells, samples]


def metric_cell(name: str) -> Cell:
    """The head of a metric's row or column."""
    about = metric(name)
    return Cell(f"{about.title} {about.arrow}".strip(), about=about.about)


def colours(labels: Mapping[str, str], base: str) -> dict[str, int]:
    """A colour of the charts for each model, the neutral one for the base."""
    others = [name for name in labels if name != base]
    return {base: 0} | {name: 1 + i % (len(COLOURS) - 1) for i, name in enumerate(others)}


def trade_offs(
    metrics: Metrics, base: str, labels: Mapping[str, str], colour: Mapping[str, int] | None = None
) -> list[Chart]:
    """What was gained against the drift it cost: fit, images at random noise and diversity, each where it was measured."""
    distance = [m for m in DISTANCES if any(m in figures for figures in metrics.values())][:1]
    found = [trade_off(metrics, base, labels, name, colour) for name in ("latent_mse", *distance, "diversity")]
    return [chart for chart in found if chart is not None]


def trade_off(
    metrics: Metrics, base: str, labels: Mapping[str, str], name: str, colour: Mapping[str, int] | None = None
) -> Chart | None:
    """A metric against drift, a point with intervals per model, the base at drift 0; None where either was not measured."""
    have = [m for m in labels if name in metrics[m] and (m == base or "drift" in metrics[m])]
    if len(have) < 2:
        return None
    colour = colour or colours(labels, base)
    return drift_chart(name, [drift_points(labels[m], {labels[m]: metrics[m]}, name, colour[m]) for m in have])


def drift_points(label: str, models: Metrics, name: str, colour: int, line: bool = False) -> Series:
    """Points of a metric against drift with their intervals, one per model; a model without drift is the base."""
    drift = [figures.get("drift", Estimate(0.0, 0.0, 0.0, 0)) for figures in models.values()]
    values = [figures[name] for figures in models.values()]
    title = metric(name).title
    return Series(
        label,
        [e.value for e in drift],
        [e.value for e in values],
        colour,
        points=True,
        line=line,
        x_interval=[(e.low, e.high) for e in drift],
        y_interval=[(e.low, e.high) for e in values],
        notes=[f"{m}: {title} {words(b)}, drift {words(a)}" for m, a, b in zip(models, drift, values, strict=True)],
        names=list(models),
    )


def drift_chart(name: str, series: Sequence[Series], note: str = "") -> Chart:
    """Such points of a metric, and what its axes mean; `note` is added to the caption."""
    where = {"lower": "Lower left is better.", "higher": "Upper left is better.", "neither": ""}[metric(name).better]
    caption = " ".join(filter(None, (where, "Bars are 95 % intervals.", note)))
    return Chart(f"{metric(name).title} against drift", "drift from the base model", series, caption, x_includes=[0.0])


def changed(before: Estimate, after: Estimate) -> str:
    """`fell from 0.390 to 0.130`, or that the two are not told apart, where their intervals overlap."""
    decimals = places([before, after])
    a, b = words(before, decimals), words(after, decimals)
    if before.low <= after.high and after.low <= before.high:
        return f"is {b}, not told apart from the base model's {a}"
    return f"{'fell' if after.value < before.value else 'rose'} from {a} to {b}"


def worse(metrics: Metrics, model: str, than: str) -> list[str]:
    """Titles of the metrics in which `model` is worse than another by more than the intervals."""
    found = []
    for name in known_metrics(metrics):
        better, a, b = metric(name).better, metrics[model].get(name), metrics[than].get(name)
        # A model is nearer to itself than any other is.
        if better != "neither" and a and b and not name.endswith("_base") and clearly_better(b, a, better):
            found.append(metric(name).title)
    return found


def findings(
    metrics: Metrics, base: str, model: str, labels: Mapping[str, str], start: str, rivals: Sequence[str] = ()
) -> list[str]:
    """What fine-tuning gave, in sentences: fit, images at random noise, drift and diversity, and where it is worse.

    `start` opens the first sentence, such as `After 2 cycles`; `rivals` are models that it is compared with besides the base.
    """
    sentences: list[str] = []
    before, after = metrics[base], metrics[model]
    near = [m for m in ("latent_mse",) if m in before and m in after]
    far = [m for m in DISTANCES if m in before and m in after][:1]
    titles = {"latent_mse": "held-out latent MSE at newly assigned noise"}
    for name in near + far:
        what = titles.get(name, f"{metric(name).title} of images at random noise to the held-out targets")
        others = [f"{labels[r]} reached {words(metrics[r][name])}" for r in rivals if name in metrics[r]]
        opening = "The" if sentences else f"{start} the"
        sentences.append("; ".join([f"{opening} {what} {changed(before[name], after[name])}", *others]) + ".")
    kept = []
    if "drift" in after:
        others = [f"{words(metrics[r]['drift'])} of {labels[r]}" for r in rivals if "drift" in metrics[r]]
        kept.append(
            f"Drift from the base model is {words(after['drift'])}" + (f", against {listed(others)}" if others else "")
        )
    if "diversity" in before and "diversity" in after:
        others = [
            f"it is {words(metrics[r]['diversity'])} under {labels[r]}" for r in rivals if "diversity" in metrics[r]
        ]
        kept.append("; ".join([f"diversity {changed(before['diversity'], after['diversity'])}", *others]))
    if kept:
        sentence = "; ".join(kept)
        sentences.append(f"{sentence[:1].upper()}{sentence[1:]}.")
    for than in (base, *rivals):
        if found := worse(metrics, model, than):
            sentences.append(
                f"The fine-tuned model is worse than {labels[than]}, by more than the intervals, in {listed(found)}."
            )
    return sentences


def leaders(metrics: Metrics, base: str, labels: Mapping[str, str]) -> list[str]:
    """Of several fine-tuned models, which is best in fit, in images at random noise and in drift, or which are tied."""
    sentences = []
    distance = [m for m in DISTANCES if any(m in figures for figures in metrics.values())][:1]
    for name in ("latent_mse", *distance, "drift"):
        marked = marks(metrics, name, base)
        if not marked:
            continue
        first = sorted(marked, key=lambda m: metrics[m][name].value, reverse=metric(name).better == "higher")
        decimals = places([figures[name] for figures in metrics.values() if name in figures])
        who = listed([f"{labels[m]} ({words(metrics[m][name], decimals)})" for m in first])
        tied = ", tied" if len(first) > 1 else ""
        before = f"; {labels[base]} has {words(metrics[base][name], decimals)}" if name in metrics[base] else ""
        lead = "Lowest" if metric(name).better == "lower" else "Highest"
        sentences.append(f"{lead} {metric(name).title}: {who}{tied}{before}.")
    for model in metrics:
        if model != base and (found := worse(metrics, model, base)):
            sentences.append(
                f"{labels[model]} is worse than {labels[base]}, by more than the intervals, in {listed(found)}."
            )
    return sentences


def judged(evaluation: Evaluation, folder: Store) -> Accounted:
    """The held-out rows that an evaluation looked at, and why some were not judged, from `failures.jsonl`."""
    rows, quarantined = evaluation.rows, evaluation.quarantined
    reasons = quarantine_reasons(folder) if quarantined else {}
    return Accounted("evaluation, held-out pairs", rows + quarantined, rows, reasons)


def evaluation_phase(evaluation: Evaluation) -> Phase:
    said = f"{evaluation.evaluations:,} evaluations, {counted(len(evaluation.metrics), 'model')}"
    return Phase.on(evaluation.config, "evaluation", said, evaluation.seconds_this_run, "")


def judges_table(evaluation: Evaluation) -> Table:
    """The feature extractors and rewards that judged, with the fingerprints of their weights."""
    features = evaluation.features
    rows = [
        [what, f"{Path(source.name).name}, {source.dimension} dimensions", source.fingerprint]
        for what, source in (("KID, FID, precision, recall", features), ("CMMD", features.cmmd))
    ]
    rows += [[metric(REWARD + name).title, name, weights] for name, weights in evaluation.rewards.items()]
    return Table(["figure", "judged by", "weights"], rows, text=True)
