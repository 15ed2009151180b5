"""Parts of a report about models that were judged: pictures in rows, the table with intervals, fit against drift, sentences.

`labels` gives each model the name that the report calls it by, and the order; `base` is the model that the others started
from.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Literal

from torch import Tensor

from ortho_core.evaluation.metrics import REWARD, Estimate, Figures, Metrics, known_metrics, metric
from ortho_core.pairs.rows import row_name
from ortho_core.pictures import load_sheet
from ortho_core.report.charts import COLOURS, Chart, Series
from ortho_core.report.page import Block, Cell, Fact, Heading, PictureRows, Table
from ortho_core.storage.store import Store
from rayjobs.reports.parts import Accounted, Phase, quarantine_reasons
from rayjobs.reports.summaries import Evaluation
from rayjobs.reports.words import counted, listed

AT_PLAIN_NOISE = "At plain noise, drawn from N(0, I): what a user of the model gets"
#: Groups of the comparison, by what a metric is of; rewards go with the first.
METRIC_GROUPS = {
    AT_PLAIN_NOISE: ("kid", "fid", "cmmd", "precision", "recall", "sharpness", "diversity"),
    "At the held-out image's own noise, searched for with each model": ("latent_mse", "psnr", "ssim", "lpips"),
    "How far from the base model, at plain noise": ("drift", "kid_base", "fid_base", "cmmd_base"),
}


def in_groups(metrics: Metrics) -> dict[str, list[str]]:
    """The figures that any of the models has, under the headings of their groups."""
    names = known_metrics(metrics)
    groups = {heading: [n for n in names if n in members] for heading, members in METRIC_GROUPS.items()}
    groups[AT_PLAIN_NOISE] += [n for n in names if n.startswith(REWARD)]
    return {heading: members for heading, members in groups.items() if members}


def in_order(metrics: Metrics) -> list[str]:
    """The same figures in one list: those at plain noise first."""
    return [name for members in in_groups(metrics).values() for name in members]


def sheets(
    folder: Path, evaluation: Evaluation, stems: Mapping[str, Path], kind: str, again: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The targets, and below them images of each model, `samples` or `closest`, as uint8 (rows, 3, Y, X) by label.

    From the contact sheets that evaluations left: `folder` is that of the targets' evaluation, `stems` are paths of sheets by
    the models' labels, without `-samples.png` and the like. `again`: labels of models whose samples at another noise follow.
    """

    def load(file: Path) -> Tensor:
        return load_sheet(file, evaluation.image_size)[: evaluation.rows]

    images = {"held-out target": load(folder / "pictures" / "targets.png")}
    for label, stem in stems.items():
        images[label] = load(stem.with_name(f"{stem.name}-{kind}.png"))
        if label in again:
            images[f"{label}, another noise"] = load(stem.with_name(f"{stem.name}-others.png"))
    return images


def picture_rows(folder: Path, evaluation: Evaluation, stems: Mapping[str, Path], again: Sequence[str]) -> list[Block]:
    """Samples at plain noise under the targets, then the closest images; `stems` and `again` as of `sheets`."""
    prompts = first_rows(folder / "evaluation.parquet", evaluation.base)
    samples = sheets(folder, evaluation, stems, "samples", again)
    closest = sheets(folder, evaluation, stems, "closest")
    return [
        Heading("Samples at plain noise"),
        "What a user of a model gets. Each column has one prompt and one noise from N(0, I), the same for every model. A sample "
        "need not look like the target above it, only as if it came from the same set.",
        PictureRows.of(
            samples,
            "“Another noise”: the same prompts at a second noise. Two rows of a model that look alike show that its images of a "
            "prompt hardly differ.",
            prompts,
        ),
        Heading("The closest images"),
        "What a model can make of each target at best. This noise is not plain: it was searched for, for each model and target "
        f"({counted(evaluation.evaluations_per_image, 'evaluation')} each), so that the image comes close to the target. A "
        "user draws no such noise, so these images show what a model can make, and the samples above what it does make.",
        PictureRows.of(closest, "The same targets, and the closest image to each that was found.", prompts),
    ]


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
    rows: list[Sequence[Cell | str] | str] = []
    for group, names in in_groups(metrics).items():
        rows += [group, *(comparison_row(metrics, name, base, labels) for name in names)]
    legend = [(metric(name).title, metric(name).about) for name in in_order(metrics)]
    caption = "Each figure with its 95 % bootstrap interval; n counts the samples."
    if len(metrics) > 2:
        caption += (
            " Among the fine-tuned models, best: better than all others by more than the intervals; tied: the intervals overlap "
            "that of the best figure, so these are not told apart."
        )
    return Table(["", *labels.values(), "n"], rows, legend, caption=caption)


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
    """What was gained against the drift it cost: images at plain noise, their diversity, the closest images."""
    found = [trade_off(metrics, base, labels, name, colour) for name in ("kid", "diversity", "latent_mse")]
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
    for name in in_order(metrics):
        better, a, b = metric(name).better, metrics[model].get(name), metrics[than].get(name)
        # A model is nearer to itself than any other is.
        if better != "neither" and a and b and not name.endswith("_base") and clearly_better(b, a, better):
            found.append(metric(name).title)
    return found


def figure_facts(metrics: Metrics, base: str, model: str) -> list[Fact]:
    """What became of the base model's figures, those at plain noise first; each where both models have it."""
    listed = []
    for name, label in (("kid", "KID"), ("diversity", "diversity"), ("latent_mse", "closest images' latent MSE")):
        before, after = metrics[base].get(name), metrics[model].get(name)
        if before and after:
            decimals = places([before, after])
            listed.append(Fact(f"{words(before, decimals)} → {words(after, decimals)}", f"{label}, base → tuned"))
    if drift := metrics[model].get("drift"):
        listed.append(Fact(words(drift), "drift from the base model"))
    return listed


def findings(
    metrics: Metrics, base: str, model: str, labels: Mapping[str, str], start: str, rivals: Sequence[str] = ()
) -> list[str]:
    """What fine-tuning gave, in sentences: at plain noise, at the held-out images' own noise, drift, and where it is worse.

    `start` opens the first sentence, such as `After 2 cycles`; `rivals` are models that it is compared with besides the base.
    """
    before, after = metrics[base], metrics[model]

    def told(name: str, what: str, verb: str) -> list[str]:
        """A sentence about what became of a figure; none where it was not measured."""
        if name not in before or name not in after:
            return []
        others = [f"{labels[r]} {verb} {words(metrics[r][name])}" for r in rivals if name in metrics[r]]
        return ["; ".join([f"{what} {changed(before[name], after[name])}", *others]) + "."]

    sentences = [
        f"{start}, the images that a user of the model gets are {nearness(before['kid'], after['kid'])} the base model's.",
        *told("kid", "KID, the distance of those images, at plain noise, from the targets as a set,", "reached"),
        *told("diversity", "Diversity, how far images of one prompt are apart,", "has"),
        *told("sharpness", "Sharpness, 1 where samples are as sharp as the targets,", "has"),
        *told("latent_mse", "At noise searched for each held-out image the latent MSE of the closest image", "reached"),
    ]
    if "drift" in after:
        others = [f"{words(metrics[r]['drift'])} of {labels[r]}" for r in rivals if "drift" in metrics[r]]
        against = f", against {listed(others)}" if others else ""
        sentences.append(f"Drift from the base model, at plain noise, is {words(after['drift'])}{against}.")
    for than in (base, *rivals):
        if found := worse(metrics, model, than):
            sentences.append(
                f"The fine-tuned model is worse than {labels[than]}, by more than the intervals, in {listed(found)}."
            )
    return sentences


def nearness(before: Estimate, after: Estimate) -> str:
    """How the distance from the targets has changed, in words that `the base model's` can follow."""
    if before.low <= after.high and after.low <= before.high:
        return "as near to the held-out images, as far as can be told, as"
    return f"{'nearer to' if after.value < before.value else 'farther from'} the held-out images than"


def leaders(metrics: Metrics, base: str, labels: Mapping[str, str]) -> list[str]:
    """Of several fine-tuned models, which is best at plain noise, at the images' own noise and in drift, or which are tied."""
    sentences = []
    leads = {
        "kid": "Nearest to the held-out images, in what a user of the model gets",
        "latent_mse": "Closest to single held-out images, at noise searched for each",
        "drift": "Least changed from the base model, at plain noise",
    }
    for name, lead in leads.items():
        marked = marks(metrics, name, base)
        if not marked:
            continue
        first = sorted(marked, key=lambda m: metrics[m][name].value)
        decimals = places([figures[name] for figures in metrics.values() if name in figures])
        who = listed([f"{labels[m]} ({words(metrics[m][name], decimals)})" for m in first])
        tied = ", tied: their intervals overlap" if len(first) > 1 else ""
        before = f"; {labels[base]} has {words(metrics[base][name], decimals)}" if name in metrics[base] else ""
        sentences.append(f"{lead} ({metric(name).title}): {who}{tied}{before}.")
    if spread := {m: figures["diversity"] for m, figures in metrics.items() if "diversity" in figures}:
        decimals = places(list(spread.values()))
        each = listed([f"{words(value, decimals)} for {labels[m]}" for m, value in spread.items()])
        sentences.insert(1, f"Diversity, how far images of one prompt are apart, is {each}.")
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
