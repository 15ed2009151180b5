"""The report of an EM run, made from the files of the run: pictures, figures, curves, how it was made."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ortho_core.pictures import labelled_rows
from ortho_core.records.plan import Settings
from ortho_core.report.charts import COLOURS, Chart
from ortho_core.report.page import Block, Charts, Fact, Links, Section, Table, render
from ortho_core.storage.open import open_store
from rayjobs.pool.derived import REPORT
from rayjobs.reports.by_size import by_size
from rayjobs.reports.curves import TrainingLog, training_charts
from rayjobs.reports.models import (
    comparison,
    evaluation_phase,
    figure_facts,
    findings,
    judged,
    picture_rows,
    sheets,
    trade_offs,
)
from rayjobs.reports.parts import Accounted, Phase, cost_table, gaussian_section, provenance, rows_section
from rayjobs.reports.summaries import (
    EM_SUMMARY,
    EVALUATION,
    Cycle,
    EmSummary,
    Evaluation,
    TrainSummary,
)
from rayjobs.reports.words import counted, duration
from rayjobs.training.run_files import HISTORY, TRAIN_SUMMARY
from rayjobs.verb.plan import replace_text

#: Columns of `comparison.png` and `closest.png`.
PAIRS_SHOWN = 12
#: Colours of these models in the charts; the cycles have the other colours.
COLOUR = {"base": 0, "direct": 2}


def write_report(work_dir: Path) -> None:
    """Write `report.html` into `work_dir`, and after an evaluation also `comparison.png` and `closest.png`."""
    summary = EmSummary.read(work_dir / EM_SUMMARY)
    cycles, last = summary.cycles, summary.cycles[-1]
    names = {"base": "base model", "direct": "direct SFT", **{c.name: label_of(c) for c in cycles}}
    sections, evaluation = [], None
    if summary.evaluation:
        folder = work_dir / "evaluation"
        evaluation = Evaluation.read(folder / EVALUATION)
        labels = {m: names[m] for m in names if m in summary.evaluation}
        stems = {label: folder / "pictures" / m for m, label in labels.items()}
        again = [labels[m] for m in labels if m in ("direct", last.name)]
        write_pictures(work_dir, evaluation, stems, again)
        sections += [
            Section("Pictures", picture_rows(folder, evaluation, stems, again)),
            comparison_section(evaluation, labels),
        ]
    pooled = f"images of cycle {last.cycle}, pooled"
    sections += [
        Section("Training", training(work_dir, summary)),
        gaussian_section(open_store(work_dir / last.name / "assignments"), pooled),
        rows_section(accounted(work_dir, summary, evaluation), open_store(work_dir / cycles[0].name / "assignments")),
        provenance("em", summary, ["What each step cost:", cost_table(phases(work_dir, summary, evaluation))]),
    ]
    html = render(
        f"EM fine-tuning of {Path(summary.option('model')).name}",
        f"{counted(len(cycles), 'cycle')} over {counted(cycles[0].assign.rows, 'pair')} of {summary.option('pairs')}",
        sections,
        headline(summary, names) + ([f"{evaluation.flattery()}."] if evaluation and evaluation.flattery() else []),
        facts(summary),
    )
    replace_text(work_dir / "report.html", html)


def label_of(cycle: Cycle) -> str:
    return f"matched SFT, cycle {cycle.cycle}"


def headline(summary: EmSummary, names: Mapping[str, str]) -> list[str]:
    """The sentences at the top."""
    cycles, metrics = summary.cycles, summary.evaluation
    if metrics:
        start = f"After {counted(len(cycles), 'cycle')} of fine-tuning"
        return findings(metrics, "base", cycles[-1].name, names, start, [m for m in metrics if m == "direct"])
    first, last = cycles[0].assign, cycles[-1]
    return [
        "The model was not judged, because no pairs were held out.",
        f"On the training pairs, the loss of the assigned noise went from {loss(first.mean_initial_loss)} (base noise, first "
        f"model) to {loss(last.assign.mean_loss)} in {counted(len(cycles), 'cycle')}, and the last M-step ended at "
        f"{loss(last.train.final_loss)}.",
    ]


def loss(value: float | None) -> str:
    """A loss as text; None is a loss that was not finite."""
    return "no finite loss" if value is None else f"{value:.4f}"


def facts(summary: EmSummary) -> list[Fact]:
    cycles = summary.cycles
    listed = figure_facts(summary.evaluation, "base", cycles[-1].name) if summary.evaluation else []
    first = cycles[0].assign
    listed.append(Fact(f"{first.assigned:,} + {first.quarantined:,}", "pairs assigned + quarantined"))
    listed.append(Fact(f"{sum(c.assign.all_evaluations for c in cycles):,}", "evaluations of the E-steps"))
    if matching := sum(c.train.match_evaluations for c in cycles):
        listed.append(Fact(f"{matching:,}", "evaluations of matching while training"))
    seconds = sum(step.seconds_this_run for c in cycles for step in (c.assign, c.train))
    return [*listed, Fact(duration(seconds), "E-steps and M-steps")]


def comparison_section(evaluation: Evaluation, labels: Mapping[str, str]) -> Section:
    metrics, base = evaluation.metrics, evaluation.base
    updates = (
        " Direct SFT trained on random noise, for as many updates as all cycles together." if "direct" in labels else ""
    )
    blocks: list[Block] = [f"Judged on {counted(evaluation.rows, 'held-out pair')}.{updates}"]
    blocks.append(comparison(metrics, base, labels))
    if charts := trade_offs(metrics, base, labels, {m: COLOUR[m] if m in COLOUR else cycle_colour(m) for m in labels}):
        blocks.append(Charts(charts))
    return Section("Comparison", [*blocks, *by_size(evaluation, labels)])


def write_pictures(work_dir: Path, evaluation: Evaluation, stems: Mapping[str, Path], again: Sequence[str]) -> None:
    """Two labelled pictures, for a README or a slide: samples at plain noise below the targets, and the closest images."""
    folder, shown = work_dir / "evaluation", min(PAIRS_SHOWN, evaluation.rows)
    pictures = {
        "comparison.png": sheets(folder, evaluation, stems, "samples", again),
        "closest.png": sheets(folder, evaluation, stems, "closest"),
    }
    for name, images in pictures.items():
        rows = {label.replace(", ", "\n"): row[:shown] for label, row in images.items()}
        labelled_rows(rows, max(1, 64 // evaluation.image_size[0])).save(work_dir / name)


def training(work_dir: Path, summary: EmSummary) -> list[Block]:
    """The table of cycles, and the loss curves of all M-steps and of direct SFT on one axis of updates."""
    rows = []
    for cycle in summary.cycles:
        e, m = cycle.assign, cycle.train
        first = m.epochs[0]["loss"]
        rows.append(
            [
                str(cycle.cycle),
                f"{loss(e.mean_initial_loss)} → {loss(e.mean_loss)}",
                f"{e.all_evaluations:,}",
                f"{'–' if first is None else f'{first:.4f}'} → {loss(m.final_loss)}",
                f"{m.updates:,}",
            ]
        )
    skipped = sum(len(c.train.skipped_updates) for c in summary.cycles)
    blocks: list[Block] = [
        Table(["cycle", "E-step loss", "evaluations", "M-step loss, first → last epoch", "updates"], rows),
    ]
    if skipped:
        blocks.append(f"{counted(skipped, 'update')} skipped, because the gradient was not finite.")
    pages = [(f"cycle {c.cycle}", f"{c.name}/assignments/{REPORT}") for c in summary.cycles]
    if written := [(text, page) for text, page in pages if (work_dir / page).is_file()]:
        blocks.append(Links("What the E-step found for each image, in pictures:", written))
    if charts := curves(work_dir, summary):
        blocks.append(Charts(charts))
    return blocks


def curves(work_dir: Path, summary: EmSummary) -> list[Chart]:
    """One chart per loss term; the curve of a cycle starts at the update where the cycle before ended."""
    logs, start = [], 0
    for cycle in summary.cycles:
        history = work_dir / cycle.name / "train" / HISTORY
        logs.append(TrainingLog(history, label_of(cycle), cycle_colour(cycle.name), start))
        start += cycle.train.updates
    direct = TrainingLog(work_dir / "direct" / "train" / HISTORY, "direct SFT, random noise", COLOUR["direct"])
    return training_charts([*logs, *([direct] if direct.file.is_file() else [])])


def cycle_colour(name: str) -> int:
    others = [c for c in range(len(COLOURS)) if c not in COLOUR.values()]
    return others[(int(name.removeprefix("cycle_")) - 1) % len(others)]


def accounted(work_dir: Path, summary: EmSummary, evaluation: Evaluation | None) -> list[Accounted]:
    steps = [Accounted.of(f"cycle {c.cycle}, E-step", c.assign) for c in summary.cycles]
    if evaluation is not None:
        steps.append(judged(evaluation, open_store(work_dir / "evaluation")))
    return steps


def phases(work_dir: Path, summary: EmSummary, evaluation: Evaluation | None) -> list[Phase]:
    assign, train = (group(summary.config, name) for name in ("assign", "train"))
    steps = []
    for cycle in summary.cycles:
        e, name = cycle.assign, f"cycle {cycle.cycle}"
        speed = f"{e.rows_per_second:.3g} rows/s" if e.rows_per_second else ""
        work = f"{e.all_evaluations:,} evaluations"
        steps.append(Phase.on(assign, f"{name}, E-step", work, e.seconds_this_run, speed))
        steps.append(m_step(train, f"{name}, M-step", cycle.train))
    direct = work_dir / "direct" / "train" / TRAIN_SUMMARY
    if direct.is_file():
        steps.append(m_step(train, "direct SFT", TrainSummary.read(direct)))
    if evaluation is not None:
        steps.append(evaluation_phase(evaluation))
    return steps


def m_step(settings: Settings, name: str, summary: TrainSummary) -> Phase:
    rate = f"{summary.images_per_second:.3g} images/s" if summary.images_per_second else ""
    work = f"{summary.updates:,} updates"
    if summary.match_evaluations:
        work += f", {summary.match_evaluations:,} evaluations of matching"
    return Phase.on(settings, name, work, summary.seconds_this_run, rate)


def group(settings: Settings, name: str) -> Settings:
    """The options of one step."""
    options = settings[name]
    assert isinstance(options, dict)
    return options
