"""The report of a sweep: what each trial gained against what it cost, with the front, the choice, and pictures of both."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ortho_core.evaluation.metrics import known_metrics, metric, number
from ortho_core.pictures import load_sheet
from ortho_core.report.charts import Chart, Series
from ortho_core.report.page import Block, Cell, Charts, Fact, Folded, PictureRows, Section, Table, render
from ortho_core.report.plots import draw_charts
from rayjobs.reports.models import (
    evaluation_phase,
    first_prompts,
    interval,
    judges_table,
    places,
    read_evaluation,
    words,
)
from rayjobs.reports.parts import counted, duration, listed, provenance
from rayjobs.sweep.records import Figures, SweepSummary, TrialRecord
from rayjobs.sweep.space import text
from rayjobs.verb.plan import replace_text

#: Trials whose pictures are shown: those on the front first.
MOST_PICTURED = 8
#: Colours of the charts: the base, direct SFT, the front, other trials.
BASE, DIRECT, FRONT, OTHER = 0, 2, 1, 3


def write_report(work_dir: Path) -> None:
    """Write `report.html` and `pareto.png` into `work_dir`, from `sweep_summary.json` and what the trials left."""
    summary: SweepSummary = json.loads((work_dir / "sweep_summary.json").read_text())
    trials = finished(summary)
    references = read_evaluation(work_dir / "references" / "evaluation")
    sections = [Section("Fit against drift", front_blocks(summary))]
    if trials:
        sections.append(Section("Pictures", pictures(work_dir, summary, references)))
    sections.append(Section("Trials", [trials_table(summary), *([figures_table(summary)] if trials else [])]))
    curves = held_out_curves(summary)
    if curves:
        sections.append(Section("While training", [Charts([curves])]))
    cost: list[Block] = ["What judged:", judges_table(references), "What it cost:", cost_table(summary, references)]
    sections.append(provenance("sweep", summary, cost))
    title = f"Sweep over {listed(list(summary['fields'].values()))}"
    config, count = summary["config"], counted(len(summary["trials"]), "trial")
    subtitle = f"{count} of {Path(str(config['model'])).name} on {config['pairs']}"
    replace_text(work_dir / "report.html", render(title, subtitle, sections, findings(summary), facts(summary)))
    if trials:
        draw_charts([against_drift(summary, summary["metric"])], work_dir / "pareto.png", size=(6.4, 4.4))


def spaced(name: str) -> str:
    """A trial's name with room to break a line."""
    return name.replace(",", ", ")


def finished(summary: SweepSummary) -> dict[str, TrialRecord]:
    return {name: trial for name, trial in summary["trials"].items() if trial["status"] == "finished"}


def compared(summary: SweepSummary) -> dict[str, Figures]:
    """The figures of the references and of all finished trials, by the name that the report calls them by."""
    names = {"base": "base model", "direct": "direct SFT"}
    references = {names[name]: figures for name, figures in summary["references"].items()}
    return references | {name: trial["metrics"] for name, trial in finished(summary).items()}


def findings(summary: SweepSummary) -> list[str]:
    """What the sweep says, in sentences."""
    trials, fit, front = finished(summary), summary["metric"], summary["front"]
    told = []
    if front:
        best, least = front[0], front[-1]
        title = metric(fit).title
        base = words(summary["references"]["base"][fit])
        reached = []
        for name in dict.fromkeys((best, least)):
            figures = trials[name]["metrics"]
            reached.append(f"{spaced(name)} has {title} {words(figures[fit])} at a drift of {words(figures['drift'])}")
        on = f"{counted(len(front), 'trial')} of {len(summary['trials'])} on the Pareto front"
        told.append(f"{on}: {listed(reached)}; the base model has {base}.")
    if direct := summary["references"].get("direct"):
        told.append(against_direct(summary, direct))
    if summary["max_drift"] is not None:
        limit = f"a drift of {summary['max_drift']:g} or less"
        told.append(
            f"The best fit with {limit} is {spaced(summary['chosen'])}."
            if summary["chosen"]
            else f"No trial has {limit}."
        )
    for status, what in (
        ("stopped", "ended early, for doing worse than others after as many epochs"),
        ("failed", "failed"),
    ):
        count = sum(trial["status"] == status for trial in summary["trials"].values())
        if count:
            told.append(f"{counted(count, 'trial')} {what}.")
    return told


def against_direct(summary: SweepSummary, direct: Figures) -> str:
    """How many trials beat direct SFT in both objectives, and whether it beats any."""
    fit, lower = summary["metric"], metric(summary["metric"]).better == "lower"
    sign = 1 if lower else -1

    def at(figures: Figures) -> tuple[float, float]:
        return sign * number(figures[fit]), number(figures["drift"])

    mine = at(direct)
    points = [at(trial["metrics"]) for trial in finished(summary).values()]
    beat = sum(p[0] < mine[0] and p[1] < mine[1] for p in points)
    beaten = sum(mine[0] < p[0] and mine[1] < p[1] for p in points)
    place = f"direct SFT ({metric(fit).title} {words(direct[fit])}, drift {words(direct['drift'])})"
    return f"{beat} of {len(points)} finished trials are better than {place} in both; it is better than {beaten} of them in both."


def facts(summary: SweepSummary) -> list[Fact]:
    statuses = [trial["status"] for trial in summary["trials"].values()]
    found = [
        Fact(str(statuses.count("finished")), "trials finished"),
        Fact(str(len(summary["front"])), "on the Pareto front"),
    ]
    if summary["chosen"]:
        found.append(Fact(spaced(summary["chosen"]), f"chosen: drift of {summary['max_drift']:g} or less"))
    found.append(Fact(f"{e_step_evaluations(summary):,}", "evaluations of the E-steps"))
    return [*found, Fact(duration(summary["seconds_this_run"]), "of the last start")]


def e_step_evaluations(summary: SweepSummary) -> int:
    """Those that were made: of the first cycle once for all trials that shared it."""
    shared = sum(trial["evaluations"][0] for trial in unique_e_steps(summary).values())
    return int(shared + sum(sum(trial["evaluations"][1:]) for trial in finished(summary).values()))


def unique_e_steps(summary: SweepSummary) -> dict[str, TrialRecord]:
    """One finished trial for each E-step that was made; the others shared it."""
    return {trial["assignments"]: trial for trial in finished(summary).values()}


def front_blocks(summary: SweepSummary) -> list[Block]:
    """The charts of both objectives, and of what else was gained or lost for the drift; the table of the front."""
    fit = summary["metric"]
    names = [n for n in dict.fromkeys((fit, "kid", "diversity")) if n in summary["references"]["base"]]
    charts = Charts([against_drift(summary, name) for name in names])
    return [charts, front_table(summary)] if finished(summary) else [charts]


def against_drift(summary: SweepSummary, name: str) -> Chart:
    """A figure against drift: trials, the base model and direct SFT; where it is the fit, the front through its trials."""
    trials, fit = finished(summary), summary["metric"]
    series = [point_series("base model", [summary["references"]["base"]], ["base model"], name, BASE)]
    if "direct" in summary["references"]:
        series.append(point_series("direct SFT", [summary["references"]["direct"]], ["direct SFT"], name, DIRECT))
    others = [n for n in trials if n not in summary["front"]]
    if others:
        series.append(point_series("trial", [trials[n]["metrics"] for n in others], others, name, OTHER))
    if summary["front"]:
        on = summary["front"][::-1]
        series.append(point_series("Pareto front", [trials[n]["metrics"] for n in on], on, name, FRONT, name == fit))
    limit = ""
    if summary["max_drift"] is not None:
        ends = [v for s in series for pair in s.y_interval for v in pair]
        series.append(Series("limit", [summary["max_drift"]] * 2, [min(ends), max(ends)], BASE, dashed=True))
        limit = f" The dashed line is the limit, {summary['max_drift']:g}."
    where = {"lower": "Lower left is better.", "higher": "Upper left is better.", "neither": ""}[metric(name).better]
    caption = f"{where} Bars are 95 % intervals; a point tells its trial.{limit}".strip()
    return Chart(f"{metric(name).title} against drift", "drift from the base model", series, caption, x_includes=[0.0])


def point_series(
    label: str, figures: Sequence[Figures], names: Sequence[str], fit: str, colour: int, line: bool = False
) -> Series:
    zero = {"value": 0.0, "low": 0.0, "high": 0.0}
    x, y = [f.get("drift", zero) for f in figures], [f[fit] for f in figures]
    notes = [
        f"{name}: {metric(fit).title} {words(b)}, drift {words(a)}" for name, a, b in zip(names, x, y, strict=True)
    ]
    return Series(
        label,
        [number(v) for v in x],
        [number(v) for v in y],
        colour,
        points=True,
        line=line,
        x_interval=[(v["low"], v["high"]) for v in x],
        y_interval=[(v["low"], v["high"]) for v in y],
        notes=notes,
        names=names,
    )


def front_table(summary: SweepSummary) -> Table:
    """The trials on the front, the best fit first, with the references above them."""
    fit, trials = summary["metric"], finished(summary)
    shown: dict[str, Figures] = {
        label: summary["references"][name]
        for name, label in (("base", "base model"), ("direct", "direct SFT"))
        if name in summary["references"]
    }
    shown |= {name: trials[name]["metrics"] for name in summary["front"]}
    decimals = {key: places([f[key] for f in shown.values() if key in f]) for key in (fit, "drift")}
    rows: list[Sequence[Cell | str]] = []
    for name, figures in shown.items():
        chosen = name == summary["chosen"]
        row: list[Cell | str] = [f"{spaced(name)} (chosen)" if chosen else spaced(name)]
        for key in (fit, "drift"):
            known = key in figures
            row.append(
                Cell(words(figures[key], decimals[key]), interval(figures[key], decimals[key])) if known else "–"
            )
        rows.append(row)
    return Table(["on the front", metric(fit).title, "drift"], rows)


def trials_table(summary: SweepSummary) -> Table:
    """Every trial with its values and both objectives."""
    fit, short = summary["metric"], summary["fields"]
    rows: list[Sequence[Cell | str]] = []
    figures = [t["metrics"] for t in finished(summary).values()]
    decimals = {key: places([f[key] for f in figures]) for key in (fit, "drift")} if figures else {}
    for name, trial in summary["trials"].items():
        where = "chosen" if name == summary["chosen"] else "front" if name in summary["front"] else trial["status"]
        values = [text(value) for value in trial["values"].values()]
        both = [
            words(trial["metrics"][key], decimals[key]) if key in trial["metrics"] else "–" for key in (fit, "drift")
        ]
        about = trial.get("error", "")
        rows.append([*values, *both, Cell(where, about=about)])
    return Table([*short.values(), metric(fit).title, "drift", ""], rows)


def figures_table(summary: SweepSummary) -> Folded:
    """Everything that was measured, a row per model."""
    models = compared(summary)
    names = known_metrics(models)
    decimals = {n: places([f[n] for f in models.values() if n in f]) for n in names}
    rows: list[Sequence[Cell | str]] = []
    for model, figures in models.items():
        row: list[Cell | str] = [model]
        for n in names:
            known = n in figures
            row.append(Cell(words(figures[n], decimals[n]), interval(figures[n], decimals[n])) if known else "–")
        rows.append(row)
    header: list[Cell | str] = [
        "",
        *(Cell(f"{metric(n).title} {metric(n).arrow}".strip(), about=metric(n).about) for n in names),
    ]
    legend = [(metric(n).title, metric(n).about) for n in names]
    return Folded("All figures of all trials", blocks=[Table(header, rows, legend)])


def pictures(work_dir: Path, summary: SweepSummary, references: Mapping[str, Any]) -> list[Block]:
    """The held-out targets, the references, and the trials on the front from the least drift to the best fit."""
    folder = work_dir / "references" / "evaluation"
    size = (int(references["image_size"][0]), int(references["image_size"][1]))
    shown = int(references["rows"])
    labels = {"base": "base model", "direct": "direct SFT"}
    picked = summary["front"][::-1]
    rest = [name for name in finished(summary) if name not in picked]
    picked = [*picked, *rest][:MOST_PICTURED]
    prompts = first_prompts(folder / "evaluation.parquet", "base")

    def rows(kind: str) -> PictureRows:
        sheets = {"held-out target": folder / "pictures" / "targets.png"}
        sheets |= {labels[name]: folder / "pictures" / f"{name}-{kind}.png" for name in summary["references"]}
        sheets |= {spaced(n): work_dir / "trials" / n / "evaluation" / "pictures" / f"trial-{kind}.png" for n in picked}
        images = {label: load_sheet(file, size)[:shown] for label, file in sheets.items()}
        return PictureRows.of(images, captions[kind], prompts)

    steps = references["evaluations_per_image"]
    captions = {
        "samples": "One random noise per column, the same for each model: what a user of the model sees.",
        "closest": f"The closest image that each model can make to the target, {steps} evaluations of noise assignment each.",
    }
    return [rows("samples"), rows("closest")]


def held_out_curves(summary: SweepSummary) -> Chart | None:
    """The held-out error of each trial over its epochs, where trials were watched."""
    series = []
    for name, trial in summary["trials"].items():
        if trial["curve"]:
            x, y = ([entry[key] for entry in trial["curve"]] for key in ("epoch", "validation_latent"))
            colour = FRONT if name in summary["front"] else OTHER if trial["status"] == "finished" else BASE
            notes = [f"{name}: epoch {a:g}, {b:.4g}" for a, b in zip(x, y, strict=True)]
            series.append(Series("", x, y, colour, points=True, notes=notes, dashed=trial["status"] == "stopped"))
    if not series:
        return None
    return Chart("held-out latent MSE", "epoch", series, "A line per trial; dashed: ended early.", log_y=True)


def cost_table(summary: SweepSummary, references: Mapping[str, Any]) -> Table:
    """Work and time, over all trials."""
    trials = finished(summary)
    made = f"{counted(len(unique_e_steps(summary)), 'set')} of assignments for {counted(len(trials), 'trial')}"
    train = sum(trial["train_seconds"] for trial in trials.values())
    updates = sum(trial["updates"] for trial in trials.values())
    judged = evaluation_phase(references)
    each = references["rows"] * references["evaluations_per_image"]
    return Table(
        ["step", "work", "time"],
        [
            ["E-steps", f"{made}, {e_step_evaluations(summary):,} evaluations", "–"],
            ["M-steps", f"{updates:,} updates", f"{duration(train)} over all trials"],
            ["evaluation", f"{judged.work} of the references; {each:,} evaluations for each trial", "–"],
        ],
        text=True,
    )
