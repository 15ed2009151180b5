"""The report of a sweep: fit and drift of each trial, the Pareto front, the chosen trial, and pictures."""

from pathlib import Path

from ortho_core.evaluation.metrics import Figures, metric
from ortho_core.report.charts import Chart, Series
from ortho_core.report.page import Block, Cell, Charts, Fact, Folded, Section, Table, render
from ortho_core.report.plots import draw_charts
from rayjobs.reports.models import (
    decimals_of,
    drift_chart,
    drift_points,
    estimate_cell,
    evaluation_phase,
    in_order,
    judges_table,
    metric_cell,
    picture_rows,
    words,
)
from rayjobs.reports.parts import provenance
from rayjobs.reports.summaries import EVALUATION, SWEEP_SUMMARY, Evaluation
from rayjobs.reports.words import counted, duration, listed
from rayjobs.sweep.records import REFERENCES, SweepSummary, TrialRecord
from rayjobs.sweep.space import text
from rayjobs.verb.plan import replace_text

#: Names of the models that trials are compared with.
LABELS = {"base": "base model", "direct": "direct SFT"}
#: Most trials with pictures; those on the front come first.
MOST_PICTURED = 8
#: Chart colours of the base model, direct SFT, the front, and other trials.
BASE, DIRECT, FRONT, OTHER = 0, 2, 1, 3


def write_report(work_dir: Path) -> None:
    """Write `report.html` and `pareto.png` into `work_dir`, from the summary and the trials' files."""
    summary = SweepSummary.read(work_dir / SWEEP_SUMMARY)
    trials = summary.finished
    references = Evaluation.read(work_dir / REFERENCES / "evaluation" / EVALUATION)
    sections = [Section("Fit against drift", front_blocks(summary))]
    if trials:
        sections.append(Section("Pictures", pictures(work_dir, summary, references)))
    sections.append(Section("Trials", [trials_table(summary), *([figures_table(summary)] if trials else [])]))
    curves = held_out_curves(summary)
    if curves:
        sections.append(Section("While training", [Charts([curves])]))
    cost: list[Block] = ["What judged:", judges_table(references), "What it cost:", work_table(summary, references)]
    sections.append(provenance("sweep", summary, cost))
    title = f"Sweep over {listed(list(summary.fields.values()))}"
    model = Path(summary.option("model")).name
    subtitle = f"{counted(len(summary.trials), 'trial')} of {model} on {summary.option('pairs')}"
    replace_text(work_dir / "report.html", render(title, subtitle, sections, sentences(summary), facts(summary)))
    if trials:
        draw_charts([against_drift(summary, summary.metric)], work_dir / "pareto.png", size=(6.4, 4.4))


def spaced(name: str) -> str:
    """A trial's name with spaces, so that a line can break."""
    return name.replace(",", ", ")


def references_by_label(summary: SweepSummary) -> dict[str, Figures]:
    return {LABELS[name]: figures for name, figures in summary.references.items()}


def sentences(summary: SweepSummary) -> list[str]:
    """The results of the sweep in sentences."""
    fit, front = summary.metric, summary.front
    lines = []
    if front:
        title = metric(fit).title
        reached = []
        for name in dict.fromkeys((front[0], front[-1])):  # the best fit, and the least drift
            figures = summary.trials[name].metrics
            reached.append(f"{spaced(name)} has {title} {words(figures[fit])} at a drift of {words(figures['drift'])}")
        tried = counted(len(summary.trials), "setting was", "settings were")
        which = "All" if len(front) == len(summary.trials) else f"{len(front)}"
        lines.append(
            f"{tried} tried. {which} of them are on the Pareto front: no other setting has both a better fit to the held-out "
            "images and less drift."
        )
        lines.append(
            f"On the front, {listed(reached)}; the base model has {title} {words(summary.references['base'][fit])}."
        )
    if direct := summary.references.get("direct"):
        lines.append(against_direct(summary, direct))
    if summary.max_drift is not None:
        limit = f"a drift of {summary.max_drift:g} or less"
        lines.append(
            f"The best fit with {limit} is {spaced(summary.chosen)}." if summary.chosen else f"No trial has {limit}."
        )
    for status, ending in (
        ("stopped", "ended early, because others were better after the same number of epochs"),
        ("failed", "failed"),
    ):
        count = sum(trial.status == status for trial in summary.trials.values())
        if count:
            lines.append(f"{counted(count, 'trial')} {ending}.")
    return lines


def against_direct(summary: SweepSummary, direct: Figures) -> str:
    """How many trials beat direct SFT in both objectives, and whether it beats any."""
    fit = summary.metric
    sign = 1 if metric(fit).better == "lower" else -1

    def at(figures: Figures) -> tuple[float, float]:
        return sign * figures[fit].value, figures["drift"].value

    mine = at(direct)
    points = [at(trial.metrics) for trial in summary.finished.values()]
    beat = sum(p[0] < mine[0] and p[1] < mine[1] for p in points)
    beaten = sum(mine[0] < p[0] and mine[1] < p[1] for p in points)
    place = f"direct SFT ({metric(fit).title} {words(direct[fit])}, drift {words(direct['drift'])})"
    return f"{beat} of {len(points)} finished trials are better in both than {place}; {beaten} are worse in both."


def facts(summary: SweepSummary) -> list[Fact]:
    shown = [
        Fact(str(len(summary.finished)), "trials finished"),
        Fact(str(len(summary.front)), "on the Pareto front"),
    ]
    if summary.chosen:
        shown.append(Fact(spaced(summary.chosen), f"chosen: drift of {summary.max_drift:g} or less"))
    shown.append(Fact(f"{e_step_evaluations(summary):,}", "evaluations of the E-steps"))
    return [*shown, Fact(duration(summary.seconds_this_run), "in the last start")]


def e_step_evaluations(summary: SweepSummary) -> int:
    """Evaluations that were made. Trials that share the first E-step count it once."""
    shared = sum(trial.evaluations[0] for trial in unique_e_steps(summary).values())
    return shared + sum(sum(trial.evaluations[1:]) for trial in summary.finished.values())


def unique_e_steps(summary: SweepSummary) -> dict[str, TrialRecord]:
    """One finished trial for each first E-step; the other trials shared it."""
    return {trial.assignments: trial for trial in summary.finished.values()}


def front_blocks(summary: SweepSummary) -> list[Block]:
    """Charts of the fit, KID and diversity against drift, and the table of the front."""
    names = [n for n in dict.fromkeys((summary.metric, "kid", "diversity")) if n in summary.references["base"]]
    charts = Charts([against_drift(summary, name) for name in names])
    return [charts, front_table(summary)] if summary.finished else [charts]


def against_drift(summary: SweepSummary, name: str) -> Chart:
    """A metric against drift for trials, base model and direct SFT. If it is the fit, a line connects the front."""
    metrics = {trial: record.metrics for trial, record in summary.finished.items()}
    colours = {"base": BASE, "direct": DIRECT}
    series = [
        drift_points(LABELS[model], {LABELS[model]: figures}, name, colours[model])
        for model, figures in summary.references.items()
    ]
    if others := {trial: figures for trial, figures in metrics.items() if trial not in summary.front}:
        series.append(drift_points("trial", others, name, OTHER))
    if summary.front:
        front = {trial: metrics[trial] for trial in reversed(summary.front)}
        series.append(drift_points("Pareto front", front, name, FRONT, line=name == summary.metric))
    note = "Hover over a point to see its trial."
    if summary.max_drift is not None:
        ends = [end for s in series for interval in s.y_interval for end in interval]
        series.append(Series("limit", [summary.max_drift] * 2, [min(ends), max(ends)], BASE, dashed=True))
        note += f" The dashed line is the limit, {summary.max_drift:g}."
    return drift_chart(name, series, note)


def front_table(summary: SweepSummary) -> Table:
    """The references, then the trials on the front, the best fit first."""
    names = (summary.metric, "drift")
    shown = references_by_label(summary) | {name: summary.trials[name].metrics for name in summary.front}
    decimals = decimals_of(list(shown.values()), names)
    rows: list[list[Cell | str]] = []
    for model, figures in shown.items():
        label = f"{spaced(model)} (chosen)" if model == summary.chosen else spaced(model)
        rows.append([label, *(estimate_cell(figures, name, decimals[name]) for name in names)])
    return Table(["on the front", *(metric(name).title for name in names)], rows)


def trials_table(summary: SweepSummary) -> Table:
    """Every trial with its values, fit and drift."""
    names = (summary.metric, "drift")
    decimals = decimals_of([trial.metrics for trial in summary.finished.values()], names)
    rows: list[list[Cell | str]] = []
    for name, trial in summary.trials.items():
        where = "chosen" if name == summary.chosen else "front" if name in summary.front else trial.status
        values = [text(value) for value in trial.values.values()]
        figures = [words(trial.metrics[n], decimals[n]) if n in trial.metrics else "–" for n in names]
        rows.append([*values, *figures, Cell(where, about=trial.error)])
    return Table([*summary.fields.values(), *(metric(name).title for name in names), ""], rows)


def figures_table(summary: SweepSummary) -> Folded:
    """All figures, one row per model."""
    models = references_by_label(summary) | {name: trial.metrics for name, trial in summary.finished.items()}
    names = in_order(models)
    decimals = decimals_of(list(models.values()), names)
    rows: list[list[Cell | str]] = [
        [model, *(estimate_cell(figures, name, decimals[name]) for name in names)] for model, figures in models.items()
    ]
    legend = [(metric(name).title, metric(name).about) for name in names]
    return Folded("All figures of all trials", blocks=[Table(["", *map(metric_cell, names)], rows, legend)])


def pictures(work_dir: Path, summary: SweepSummary, references: Evaluation) -> list[Block]:
    """Pictures of the targets, the references, and the trials on the front from the least drift to the best fit.

    The chosen trial, or else the one with the best fit, also shows samples at another noise.
    """
    folder = work_dir / REFERENCES / "evaluation"
    front = summary.front[::-1]
    trials = [*front, *(name for name in summary.finished if name not in front)][:MOST_PICTURED]
    stems = {LABELS[name]: folder / "pictures" / name for name in summary.references}
    stems |= {spaced(n): work_dir / "trials" / n / "evaluation" / "pictures" / "trial" for n in trials}
    again = [summary.chosen] if summary.chosen else trials[: len(front)][-1:]
    return picture_rows(folder, references, stems, [spaced(name) for name in again])


def held_out_curves(summary: SweepSummary) -> Chart | None:
    """The held-out error of each trial over its epochs; None if no trial was validated."""
    series = []
    for name, trial in summary.trials.items():
        if trial.curve:
            epochs, errors = [p.epoch for p in trial.curve], [p.validation_latent for p in trial.curve]
            colour = FRONT if name in summary.front else OTHER if trial.status == "finished" else BASE
            notes = [f"{name}: epoch {a:g}, {b:.4g}" for a, b in zip(epochs, errors, strict=True)]
            stopped = trial.status == "stopped"
            series.append(Series("", epochs, errors, colour, points=True, notes=notes, dashed=stopped))
    if not series:
        return None
    return Chart("held-out latent MSE", "epoch", series, "A line per trial; dashed: ended early.", log_y=True)


def work_table(summary: SweepSummary, references: Evaluation) -> Table:
    """Work and time of all trials together."""
    trials = summary.finished
    made = f"{counted(len(unique_e_steps(summary)), 'set')} of assignments for {counted(len(trials), 'trial')}"
    seconds = sum(trial.train_seconds for trial in trials.values())
    updates = sum(trial.updates for trial in trials.values())
    each = references.rows * references.evaluations_per_image
    judging = f"{evaluation_phase(references).work} of the references; {each:,} evaluations for each trial"
    return Table(
        ["step", "work", "time"],
        [
            ["E-steps", f"{made}, {e_step_evaluations(summary):,} evaluations", "–"],
            ["M-steps", f"{updates:,} updates", f"{duration(seconds)} over all trials"],
            ["evaluation", judging, "–"],
        ],
        text=True,
    )
