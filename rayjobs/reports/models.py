"""Parts of a report about judged models: rows of pictures, the table with intervals, charts against drift, sentences.

`labels` has the name of each model in the report, in order. `base` is the model that the others started from.
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
#: Groups of the comparison with their metrics; rewards belong to the first group.
METRIC_GROUPS = {
    AT_PLAIN_NOISE: ("kid", "fid", "cmmd", "precision", "recall", "sharpness", "diversity"),
    "At noise searched for each held-out image, with each model": ("latent_mse", "psnr", "ssim", "lpips"),
    "How far from the base model, at plain noise": ("drift", "kid_base", "fid_base", "cmmd_base"),
}


def in_groups(metrics: Metrics) -> dict[str, list[str]]:
    """The figures that at least one model has, by the heading of their group."""
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
    """The targets, then the images of each model (`kind`: `samples` or `closest`), as uint8 (rows, 3, Y, X) by label.

    They are read from the contact sheets of evaluations. `folder` is the evaluation that has the targets; `stems` are the paths
    of each label's sheets without `-samples.png` and the like; `again` are the labels that also show samples at another noise.
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
    """Samples at plain noise under the targets, then the closest images; `stems` and `again` as in `sheets`."""
    prompts = first_rows(folder / "evaluation.parquet", evaluation.base)
    samples = sheets(folder, evaluation, stems, "samples", again)
    closest = sheets(folder, evaluation, stems, "closest")
    return [
        Heading("Samples at plain noise"),
        "What a user of a model gets. Each column has one prompt and one noise from N(0, I), the same for every model. A sample "
        "does not have to look like the target above it, only like an image of the same set.",
        PictureRows.of(
            samples,
            "“Another noise”: the same prompts at a second noise. If the two rows of a model look alike, its images of a prompt "
            "hardly differ.",
            prompts,
        ),
        Heading("The closest images"),
        "The image closest to each target that was found for each model. The noise is not plain: a search "
        f"({counted(evaluation.evaluations_per_image, 'evaluation')} per image) moved it so that the image comes close to the "
        "target. A user does not draw such noise: these images show what a model can make, the samples above what it does make.",
        PictureRows.of(closest, "The same targets, and the closest image found for each.", prompts),
    ]


def first_rows(table: Path, base: str, count: int = 16) -> list[str]:
    """Prompt and image name of the first judged rows; empty if there is no table."""
    import pyarrow.parquet as pq

    captions: list[str] = []
    if table.is_file():
        for batch in pq.ParquetFile(table).iter_batches(columns=["model", "sample_id", "prompt", "image"]):
            mine = (row for row in batch.to_pylist() if row["model"] == base)
            captions += [f"{row['prompt']} · {row_name(row['image'], row['sample_id'])}" for row in mine]
            if len(captions) >= count:
                break
    return captions[:count]


def places(estimates: Sequence[Estimate]) -> int:
    """The number of decimals at which a typical interval's width has two digits."""
    widths = [e.high - e.low for e in estimates if e.high > e.low]
    if not widths:
        return 3
    return max(0, min(6, 1 - math.floor(math.log10(median(widths)))))


def words(estimate: Estimate, decimals: int | None = None) -> str:
    return f"{estimate.value:.{places([estimate]) if decimals is None else decimals}f}"


def interval(estimate: Estimate, decimals: int) -> str:
    return f"[{estimate.low:.{decimals}f}, {estimate.high:.{decimals}f}]"


def estimate_cell(figures: Figures, name: str, decimals: int, mark: Literal["", "best", "tied"] = "") -> Cell | str:
    """A figure with its interval, or a dash if it was not measured."""
    if name not in figures:
        return "–"
    return Cell(words(figures[name], decimals), interval(figures[name], decimals), mark)


def decimals_of(models: Sequence[Figures], names: Sequence[str]) -> dict[str, int]:
    """The number of decimals of each figure in a table of several models."""
    return {name: places([figures[name] for figures in models if name in figures]) for name in names}


def clearly_better(a: Estimate, b: Estimate, better: str) -> bool:
    """Whether `a` is better than `b` and their intervals do not overlap."""
    return a.high < b.low if better == "lower" else a.low > b.high


def marks(metrics: Metrics, name: str, base: str) -> dict[str, Literal["best", "tied"]]:
    """The best model in a metric, `base` aside: `best` if no other interval overlaps its own, else `tied` for all that do."""
    better = metric(name).better
    have = {m: figures[name] for m, figures in metrics.items() if m != base and name in figures}
    if better == "neither" or len(have) < 2:
        return {}
    first = (min if better == "lower" else max)(have, key=lambda m: have[m].value)
    tied = [m for m in have if m != first and not clearly_better(have[first], have[m], better)]
    return dict.fromkeys((first, *tied), "tied") if tied else {first: "best"}


def comparison(metrics: Metrics, base: str, labels: Mapping[str, str]) -> Table:
    """One row per metric, one column per model: value, interval, sample count, marks for best and tied."""
    rows: list[Sequence[Cell | str] | str] = []
    for group, names in in_groups(metrics).items():
        rows += [group, *(comparison_row(metrics, name, base, labels) for name in names)]
    legend = [(metric(name).title, metric(name).about) for name in in_order(metrics)]
    caption = "Each figure has its 95 % bootstrap interval; n is the number of samples."
    if len(metrics) > 2:
        caption += (
            " Among the fine-tuned models, best: better than all others, and the intervals do not overlap; tied: the interval "
            "overlaps that of the best figure."
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
    """The header cell of a metric's row or column."""
    about = metric(name)
    return Cell(f"{about.title} {about.arrow}".strip(), about=about.about)


def colours(labels: Mapping[str, str], base: str) -> dict[str, int]:
    """A chart colour for each model; the base has the neutral one."""
    others = [name for name in labels if name != base]
    return {base: 0} | {name: 1 + i % (len(COLOURS) - 1) for i, name in enumerate(others)}


def trade_offs(
    metrics: Metrics, base: str, labels: Mapping[str, str], colour: Mapping[str, int] | None = None
) -> list[Chart]:
    """Charts of KID, diversity and the closest images' MSE against drift."""
    charts = [trade_off(metrics, base, labels, name, colour) for name in ("kid", "diversity", "latent_mse")]
    return [chart for chart in charts if chart is not None]


def trade_off(
    metrics: Metrics, base: str, labels: Mapping[str, str], name: str, colour: Mapping[str, int] | None = None
) -> Chart | None:
    """A metric against drift, one point with intervals per model, the base at drift 0; None with fewer than two points."""
    have = [m for m in labels if name in metrics[m] and (m == base or "drift" in metrics[m])]
    if len(have) < 2:
        return None
    colour = colour or colours(labels, base)
    return drift_chart(name, [drift_points(labels[m], {labels[m]: metrics[m]}, name, colour[m]) for m in have])


def drift_points(label: str, models: Metrics, name: str, colour: int, line: bool = False) -> Series:
    """Points of a metric against drift, with intervals, one per model. A model without a drift is the base, at 0."""
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
    """The chart of such points, with a caption about its axes; `note` is added to the caption."""
    where = {"lower": "Lower left is better.", "higher": "Upper left is better.", "neither": ""}[metric(name).better]
    caption = " ".join(filter(None, (where, "Bars are 95 % intervals.", note)))
    return Chart(f"{metric(name).title} against drift", "drift from the base model", series, caption, x_includes=[0.0])


def changed(before: Estimate, after: Estimate) -> str:
    """`fell from 0.390 to 0.130`, or, if the intervals overlap, a sentence about that."""
    decimals = places([before, after])
    a, b = words(before, decimals), words(after, decimals)
    if before.low <= after.high and after.low <= before.high:
        return f"is {b}, and its interval overlaps that of the base model's {a}"
    return f"{'fell' if after.value < before.value else 'rose'} from {a} to {b}"


def worse(metrics: Metrics, model: str, than: str) -> list[str]:
    """Titles of the metrics in which `model` is worse than `than` and the intervals do not overlap."""
    titles = []
    for name in in_order(metrics):
        better, a, b = metric(name).better, metrics[model].get(name), metrics[than].get(name)
        # In distances from the base model, the base model is always the nearest.
        if better != "neither" and a and b and not name.endswith("_base") and clearly_better(b, a, better):
            titles.append(metric(name).title)
    return titles


def figure_facts(metrics: Metrics, base: str, model: str) -> list[Fact]:
    """The main figures of the base model and of `model`, those at plain noise first; each if both models have it."""
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
    """The result of fine-tuning in sentences: at plain noise, at searched noise, drift, and in which metrics it is worse.

    `start` begins the first sentence, such as `After 2 cycles`. `rivals` are models to compare with besides the base.
    """
    before, after = metrics[base], metrics[model]

    def sentence(name: str, subject: str, verb: str) -> list[str]:
        """A sentence about the change of a figure; none if it was not measured."""
        if name not in before or name not in after:
            return []
        others = [f"{labels[r]} {verb} {words(metrics[r][name])}" for r in rivals if name in metrics[r]]
        return ["; ".join([f"{subject} {changed(before[name], after[name])}", *others]) + "."]

    sentences = [
        f"{start}, the images that a user of the model gets are {nearness(before['kid'], after['kid'])} the base model's.",
        *sentence("kid", "KID, the distance of the set of these images from the set of targets,", "reached"),
        *sentence("diversity", "Diversity, the mean distance between images of one prompt,", "has"),
        *sentence("sharpness", "Sharpness, which is 1 if samples are as sharp as the targets,", "has"),
        *sentence(
            "latent_mse", "At noise searched for each held-out image, the latent MSE of the closest image", "reached"
        ),
    ]
    if "drift" in after:
        others = [f"{words(metrics[r]['drift'])} of {labels[r]}" for r in rivals if "drift" in metrics[r]]
        against = f", against {listed(others)}" if others else ""
        sentences.append(f"Drift from the base model, at plain noise, is {words(after['drift'])}{against}.")
    for than in (base, *rivals):
        if titles := worse(metrics, model, than):
            sentences.append(
                f"The fine-tuned model is worse than {labels[than]}, with intervals that do not overlap, in {listed(titles)}."
            )
    return sentences


def nearness(before: Estimate, after: Estimate) -> str:
    """The change of the distance from the targets, in words that `the base model's` can follow."""
    if before.low <= after.high and after.low <= before.high:
        return "about as near to the held-out images as"
    return f"{'nearer to' if after.value < before.value else 'farther from'} the held-out images than"


def leaders(metrics: Metrics, base: str, labels: Mapping[str, str]) -> list[str]:
    """The best or tied of several fine-tuned models: at plain noise, at searched noise, in drift; and where one is worse."""
    sentences = []
    leads = {
        "kid": "Nearest to the held-out images at plain noise",
        "latent_mse": "Closest to single held-out images at noise searched for each",
        "drift": "Least changed from the base model at plain noise",
    }
    for name, lead in leads.items():
        marked = marks(metrics, name, base)
        if not marked:
            continue
        first = sorted(marked, key=lambda m: metrics[m][name].value)
        decimals = places([figures[name] for figures in metrics.values() if name in figures])
        names = listed([f"{labels[m]} ({words(metrics[m][name], decimals)})" for m in first])
        tied = ", tied: their intervals overlap" if len(first) > 1 else ""
        before = ""
        if (own := metrics[base].get(name)) is not None:
            lower = ", which is lower" if own.value < metrics[first[0]][name].value else ""
            before = f"; {labels[base]} has {words(own, decimals)}{lower}"
        sentences.append(f"{lead} ({metric(name).title}): {names}{tied}{before}.")
    if spread := {m: figures["diversity"] for m, figures in metrics.items() if "diversity" in figures}:
        decimals = places(list(spread.values()))
        each = listed([f"{words(value, decimals)} for {labels[m]}" for m, value in spread.items()])
        sentences.insert(1, f"Diversity, the mean distance between images of one prompt, is {each}.")
    for model in metrics:
        if model != base and (titles := worse(metrics, model, base)):
            sentences.append(
                f"{labels[model]} is worse than {labels[base]}, with intervals that do not overlap, in {listed(titles)}."
            )
    return sentences


def judged(evaluation: Evaluation, folder: Store) -> Accounted:
    """The held-out rows of an evaluation, and the reasons in `failures.jsonl` of those that were not judged."""
    rows, quarantined = evaluation.rows, evaluation.quarantined
    reasons = quarantine_reasons(folder) if quarantined else {}
    return Accounted("evaluation, held-out pairs", rows + quarantined, rows, reasons)


def evaluation_phase(evaluation: Evaluation) -> Phase:
    work = f"{evaluation.evaluations:,} evaluations, {counted(len(evaluation.metrics), 'model')}"
    return Phase.on(evaluation.config, "evaluation", work, evaluation.seconds_this_run, "")


def judges_table(evaluation: Evaluation) -> Table:
    """The feature models and rewards that judged, with the fingerprints of their weights."""
    features = evaluation.features
    rows = [
        [what, f"{Path(source.name).name}, {source.dimension} dimensions", source.fingerprint]
        for what, source in (("KID, FID, precision, recall", features), ("CMMD", features.cmmd))
    ]
    rows += [[metric(REWARD + name).title, name, weights] for name, weights in evaluation.rewards.items()]
    return Table(["figure", "judged by", "weights"], rows, text=True)
