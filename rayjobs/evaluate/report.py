"""The report of an evaluation, made from its files."""

from pathlib import Path

from ortho_core.report.page import Block, Charts, Fact, Section, render
from ortho_core.storage.open import open_store
from rayjobs.reports.by_size import by_size
from rayjobs.reports.models import (
    comparison,
    evaluation_phase,
    figure_facts,
    findings,
    judged,
    judges_table,
    leaders,
    picture_rows,
    trade_offs,
)
from rayjobs.reports.parts import cost_table, provenance, rows_section
from rayjobs.reports.summaries import EVALUATION, Evaluation
from rayjobs.reports.words import counted
from rayjobs.verb.plan import replace_text


def write_report(folder: Path) -> None:
    """Write `report.html` into the folder of an evaluation, from its evaluation.json, evaluation.parquet and pictures."""
    evaluation = Evaluation.read(folder / EVALUATION)
    metrics, base = evaluation.metrics, evaluation.base
    labels = {name: name for name in metrics}
    tuned = [name for name in metrics if name != base]
    if len(tuned) == 1:
        sentences = findings(metrics, base, tuned[0], labels, f"With {tuned[0]}")
    else:
        sentences = leaders(metrics, base, labels)
    if flattery := evaluation.flattery():
        sentences.append(f"{flattery}.")
    compared: list[Block] = [comparison(metrics, base, labels)]
    if charts := trade_offs(metrics, base, labels):
        compared.append(Charts(charts))
    compared += by_size(evaluation, labels)
    cost = cost_table([evaluation_phase(evaluation)])
    made: list[Block] = ["What judged:", judges_table(evaluation), "What it cost:", cost]
    account = judged(evaluation, open_store(folder))
    stems = {name: folder / "pictures" / name for name in labels}
    sections = [
        Section("Pictures", picture_rows(folder, evaluation, stems, [*labels][-1:])),
        Section("Comparison", compared),
        rows_section([account], open_store(folder)),
        provenance("evaluate", evaluation, made),
    ]
    facts = [
        *(figure_facts(metrics, base, tuned[0]) if len(tuned) == 1 else []),
        Fact(f"{len(metrics)}", f"models; base: {base}"),
        Fact(f"{account.used:,} + {account.quarantined:,}", "held-out pairs judged + quarantined"),
        Fact(str(evaluation.evaluations_per_image), "evaluations of noise assignment per image"),
    ]
    subtitle = (
        f"{counted(len(metrics), 'model')} on {counted(account.used, 'held-out pair')} of {evaluation.option('pairs')}"
    )
    title = f"Evaluation of {tuned[0] if len(tuned) == 1 else base if not tuned else counted(len(tuned), 'model')}"
    replace_text(folder / "report.html", render(title, subtitle, sections, sentences, facts))
