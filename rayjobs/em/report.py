"""The report of an EM run, from the files the run left: pictures first, then figures, curves, and how it was made."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ortho_core.pictures import labelled_rows, load_sheet
from ortho_core.report.charts import COLOURS, Chart
from ortho_core.report.page import Block, Charts, Fact, Section, Table, render
from ortho_core.storage.open import open_store
from rayjobs.reports.curves import TrainingLog, training_charts
from rayjobs.reports.models import (
    comparison,
    evaluation_phase,
    findings,
    judged,
    picture_rows,
    places,
    read_evaluation,
    trade_offs,
    words,
)
from rayjobs.reports.parts import (
    Accounted,
    Phase,
    cost_table,
    counted,
    duration,
    gaussian_section,
    provenance,
    rows_section,
    spent,
)
from rayjobs.training.run_files import HISTORY
from rayjobs.verb.plan import replace_text

#: Columns of `comparison.png`.
SHOWN = 12
#: Colours of the charts; the cycles have the others.
COLOUR = {"base": 0, "direct": 2}


def write_report(work_dir: Path) -> None:
    """Write `report.html` and, where there was an evaluation, its main picture `comparison.png` into `work_dir`."""
    summary = json.loads((work_dir / "em_summary.json").read_text())
    cycles, config = summary["cycles"], summary["config"]
    steps = {f"cycle_{c['cycle']:02d}": f"matched SFT, cycle {c['cycle']}" for c in cycles}
    names = {"base": "base model", **steps, "direct": "direct SFT"}
    sections, evaluation = [], None
    if summary["evaluation"]:
        evaluation = read_evaluation(work_dir / "evaluation")
        labels = {m: names[m] for m in names if m in summary["evaluation"]}
        write_comparison(work_dir, evaluation, labels)
        sections += [
            Section("Pictures", picture_rows(work_dir / "evaluation", evaluation, labels)),
            comparison_section(evaluation, labels),
        ]
    last = open_store(work_dir / f"cycle_{cycles[-1]['cycle']:02d}" / "assignments")
    sections += [
        Section("Training", training(work_dir, summary)),
        gaussian_section(last, f"images of cycle {cycles[-1]['cycle']}, pooled"),
        rows_section(accounted(work_dir, summary, evaluation), open_store(work_dir / "cycle_01" / "assignments")),
        provenance("em", summary, ["What each step cost:", cost_table(phases(work_dir, summary, evaluation))]),
    ]
    rows = cycles[0]["assign"]["rows"]
    html = render(
        f"EM fine-tuning of {Path(config['model']).name}",
        f"{counted(len(cycles), 'cycle')} over {counted(rows, 'pair')} of {config['pairs']}",
        sections,
        told(summary, names),
        facts(summary),
    )
    replace_text(work_dir / "report.html", html)


def told(summary: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """The sentences at the top."""
    cycles, metrics = summary["cycles"], summary["evaluation"]
    if metrics:
        last = f"cycle_{cycles[-1]['cycle']:02d}"
        start = f"After {counted(len(cycles), 'cycle')} of EM"
        return findings(metrics, "base", last, names, start, [m for m in metrics if m == "direct"])
    first, final = cycles[0]["assign"], cycles[-1]
    return [
        f"In {counted(len(cycles), 'cycle')} the loss of the assigned noise went from {first['mean_initial_loss']:.4f} (base "
        f"noise, first model) to {final['assign']['mean_loss']:.4f}, and the last M-step ended at "
        f"{loss_of(final['train'])}. These are of the training pairs: without --heldout nothing was judged on others."
    ]


def loss_of(train: Mapping[str, Any]) -> str:
    """The final loss of an M-step; the summary has none where it was not finite."""
    return "no finite loss" if train["final_loss"] is None else f"{train['final_loss']:.4f}"


def facts(summary: Mapping[str, Any]) -> list[Fact]:
    cycles, metrics = summary["cycles"], summary["evaluation"] or {}
    found = []
    final = metrics.get(f"cycle_{cycles[-1]['cycle']:02d}", {})
    for name, label in (("latent_mse", "latent MSE, held-out"), ("diversity", "diversity")):
        if name in final and name in metrics["base"]:
            decimals = places([metrics["base"][name], final[name]])
            found.append(Fact(f"{words(metrics['base'][name], decimals)} → {words(final[name], decimals)}", label))
    if "drift" in final:
        found.append(Fact(words(final["drift"]), "drift from the base model"))
    first = cycles[0]["assign"]
    found.append(Fact(f"{first['assigned']:,} + {first['quarantined']:,}", "pairs assigned + quarantined"))
    found.append(Fact(f"{sum(spent(c['assign']) for c in cycles):,}", "evaluations of the E-steps"))
    seconds = sum(c[step]["seconds_this_run"] for c in cycles for step in ("assign", "train"))
    return [*found, Fact(duration(seconds), "E-steps and M-steps")]


def comparison_section(evaluation: Mapping[str, Any], labels: Mapping[str, str]) -> Section:
    metrics, base = evaluation["metrics"], evaluation["base"]
    updates = " Direct SFT had as many updates, on random noise, as all cycles together." if "direct" in labels else ""
    blocks: list[Block] = [f"Judged on {counted(evaluation['rows'], 'held-out pair')}.{updates}"]
    blocks.append(comparison(metrics, base, labels))
    if charts := trade_offs(metrics, base, labels, {m: COLOUR[m] if m in COLOUR else cycle_colour(m) for m in labels}):
        blocks.append(Charts(charts))
    return Section("Comparison", blocks)


def write_comparison(work_dir: Path, evaluation: Mapping[str, Any], labels: Mapping[str, str]) -> None:
    """The closest images as one labelled picture, for a README or a slide."""
    size = (evaluation["image_size"][0], evaluation["image_size"][1])
    sheets = {"held-out\ntarget": "targets"}
    sheets |= {label.replace(", ", "\n"): f"{name}-closest" for name, label in labels.items()}
    folder = work_dir / "evaluation" / "pictures"
    shown = min(SHOWN, evaluation["rows"])
    rows = {label: load_sheet(folder / f"{stem}.png", size)[:shown] for label, stem in sheets.items()}
    labelled_rows(rows, max(1, 64 // size[0])).save(work_dir / "comparison.png")


def training(work_dir: Path, summary: Mapping[str, Any]) -> list[Block]:
    """The table of cycles, and the curves of all M-steps on one axis of updates, direct SFT beside them."""
    rows = []
    for entry in summary["cycles"]:
        e, m = entry["assign"], entry["train"]
        first = m["epochs"][0]["loss"]
        start = "–" if first is None else f"{first:.4f}"
        rows.append(
            [
                str(entry["cycle"]),
                f"{e['mean_initial_loss']:.4f} → {e['mean_loss']:.4f}",
                f"{spent(e):,}",
                f"{start} → {loss_of(m)}",
                f"{m['updates']:,}",
            ]
        )
    skipped = sum(len(c["train"]["skipped_updates"]) for c in summary["cycles"])
    blocks: list[Block] = [
        Table(["cycle", "E-step loss", "evaluations", "M-step loss, first → last epoch", "updates"], rows),
    ]
    if skipped:
        blocks.append(f"{counted(skipped, 'update')} had a gradient that was not finite, and were skipped.")
    if charts := curves(work_dir, summary):
        blocks.append(Charts(charts))
    return blocks


def curves(work_dir: Path, summary: Mapping[str, Any]) -> list[Chart]:
    """One chart per term: each cycle goes on where the one before ended."""
    logs, start = [], 0
    for entry in summary["cycles"]:
        name, label = f"cycle_{entry['cycle']:02d}", f"matched SFT, cycle {entry['cycle']}"
        logs.append(TrainingLog(work_dir / name / "train" / HISTORY, label, cycle_colour(name), start))
        start += entry["train"]["updates"]
    direct = TrainingLog(work_dir / "direct" / "train" / HISTORY, "direct SFT, random noise", COLOUR["direct"])
    return training_charts([*logs, *([direct] if direct.file.is_file() else [])])


def cycle_colour(name: str) -> int:
    others = [c for c in range(len(COLOURS)) if c not in COLOUR.values()]
    return others[(int(name.removeprefix("cycle_")) - 1) % len(others)]


def accounted(work_dir: Path, summary: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> list[Accounted]:
    steps = [Accounted.of(f"cycle {c['cycle']}, E-step", c["assign"]) for c in summary["cycles"]]
    if evaluation is not None:
        steps.append(judged(evaluation, open_store(work_dir / "evaluation")))
    return steps


def phases(work_dir: Path, summary: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> list[Phase]:
    config, found = summary["config"], []
    for entry in summary["cycles"]:
        e, m, name = entry["assign"], entry["train"], f"cycle {entry['cycle']}"
        work, rate = f"{spent(e):,} evaluations", e.get("rows_per_second")
        speed = f"{rate:.3g} rows/s" if rate else ""
        found.append(Phase.on(config["assign"], f"{name}, E-step", work, e["seconds_this_run"], speed))
        found.append(m_step(config["train"], f"{name}, M-step", m))
    direct = work_dir / "direct" / "train" / "train_summary.json"
    if direct.is_file():
        found.append(m_step(config["train"], "direct SFT", json.loads(direct.read_text())))
    if evaluation is not None:
        found.append(evaluation_phase(evaluation))
    return found


def m_step(settings: Mapping[str, Any], name: str, summary: Mapping[str, Any]) -> Phase:
    rate = f"{summary['images_per_second']:.3g} images/s" if summary["images_per_second"] else ""
    return Phase.on(settings, name, f"{summary['updates']:,} updates", summary["seconds_this_run"], rate)
