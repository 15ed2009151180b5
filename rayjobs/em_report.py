"""The report of an EM run, from the files the run left: pictures first, then numbers, then how it was made."""

import json
from pathlib import Path
from typing import Any

import yaml

from ortho_core.metrics import cell, known_metrics, metric, number
from ortho_core.pictures import labelled_rows, load_sheet
from ortho_core.report import Cell, Figure, Section, Table, render
from rayjobs.ledger import replace_text

#: How many held-out rows the pictures show, and how many assigned noises the Gaussian check pools.
SHOWN = 12


def write_report(work_dir: Path) -> None:
    """Write `report.html` and its main picture, `comparison.png`, into `work_dir`."""
    summary = json.loads((work_dir / "em_summary.json").read_text())
    sections = []
    if summary["evaluation"]:
        sections += [pictures(work_dir, summary), comparison(work_dir, summary)]
    sections += [cycles(work_dir, summary), gaussian(work_dir, summary), provenance(summary)]
    base = Path(summary["config"]["model"]).name
    title = f"EM fine-tuning of {base}"
    subtitle = f"{len(summary['cycles'])} cycles over {summary['cycles'][0]['assign']['rows']} pairs"
    replace_text(work_dir / "report.html", render(title, subtitle, sections))


def label(name: str) -> str:
    words = {"base": "base model", "direct": "direct SFT\n(random noise)"}
    return words.get(name, f"matched SFT\ncycle {name.removeprefix('cycle_').lstrip('0')}")


def pictures(work_dir: Path, summary: dict[str, Any]) -> Section:
    folder = work_dir / "evaluation" / "pictures"
    models = list(summary["evaluation"])
    size = picture_size(work_dir)
    scale = max(1, 64 // size[0])
    targets = load_sheet(folder / "targets.png", size)[:SHOWN]
    closest = {label(m): load_sheet(folder / f"{m}-closest.png", size)[:SHOWN] for m in models}
    samples = {label(m): load_sheet(folder / f"{m}-samples.png", size)[:SHOWN] for m in models}
    near = labelled_rows({"held-out\ntarget": targets, **closest}, scale)
    near.save(work_dir / "comparison.png")
    fresh = labelled_rows({"held-out\ntarget": targets, **samples}, scale)
    steps = evaluation(work_dir)["evaluations_per_image"]
    return Section(
        "Held-out targets, and what each model makes of them",
        [],
        None,
        [
            Figure.of(
                near, f"The closest image each model can make ({steps} evaluations of noise assignment per image)."
            ),
            Figure.of(
                fresh,
                "The same prompts at random noise, one noise per column: what a user of the model sees. Columns keep their "
                "shape from the base model down where behaviour is preserved.",
            ),
        ],
    )


def evaluation(work_dir: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((work_dir / "evaluation" / "evaluation.json").read_text())
    return content


def picture_size(work_dir: Path) -> tuple[int, int]:
    """(Y, X) of one image."""
    Y, X = evaluation(work_dir)["image_size"]
    return Y, X


def comparison(work_dir: Path, summary: dict[str, Any]) -> Section:
    metrics = summary["evaluation"]
    names = known_metrics(metrics)
    rows = []
    for name, values in metrics.items():
        cells = [Cell(label(name).replace("\n", " "))]
        for key in names:
            better = metric(key).better
            trained = {m: number(v[key]) for m, v in metrics.items() if m != "base"}
            best = (min if better == "lower" else max)(trained.values()) if trained and better != "neither" else None
            cells.append(Cell(cell(values.get(key)), name != "base" and trained[name] == best))
        rows.append(cells)
    about = [f"{metric(key).title}: {metric(key).about}." for key in names]
    return Section(
        "The comparison",
        [
            f"On {evaluation(work_dir)['rows']} held-out pairs, direct SFT and the last cycle at the same number of updates. "
            + " ".join(about),
            "In brackets, 95 % intervals over images. The best fine-tuned model of each column is marked.",
        ],
        Table(["model", *(f"{metric(key).title} {metric(key).arrow}".rstrip() for key in names)], rows),
    )


def cycles(work_dir: Path, summary: dict[str, Any]) -> Section:
    rows = []
    figures = []
    for entry in summary["cycles"]:
        e, m = entry["assign"], entry["train"]
        rows.append(
            [
                Cell(str(entry["cycle"])),
                Cell(f"{e['rows']} = {e['assigned']} + {e['quarantined']}"),
                Cell(f"{e['mean_initial_loss']:.4f} → {e['mean_loss']:.4f}"),
                Cell(f"{e['evaluations']:,}"),
                Cell(f"{e['seconds_this_run']:.0f} s"),
                Cell(f"{m['updates']}"),
                Cell(f"{m['epochs'][0]['loss']:.4f} → {m['final_loss']:.4f}"),
                Cell(f"{m['seconds_this_run']:.0f} s"),
            ]
        )
        plot = work_dir / f"cycle_{entry['cycle']:02d}" / "train" / "train_history.png"
        figures.append(Figure.of(plot, f"Loss of cycle {entry['cycle']}'s M-step."))
    direct = work_dir / "direct" / "train" / "train_history.png"
    if direct.is_file():
        figures.append(Figure.of(direct, "Loss of direct SFT on random noise, the same targets."))
    header = ["cycle", "rows = assigned + quarantined", "E-step loss", "evaluations", "time"]
    return Section("Cycles", [], Table([*header, "updates", "M-step loss", "time"], rows), figures)


def gaussian(work_dir: Path, summary: dict[str, Any]) -> Section:
    last = summary["cycles"][-1]["cycle"]
    folder = work_dir / f"cycle_{last:02d}" / "assignments"
    s = json.loads((folder / "orthogonal_gaussian_final.json").read_text())
    low, high = s["covariance"]["marchenko_pastur"]
    eigenvalues = s["covariance"]["eigenvalues"]
    return Section(
        "Is the assigned noise still Gaussian?",
        [
            "A fixed rotation leaves N(0, I) as it is. A rotation chosen from the image keeps every patch's norm, not "
            f"independence. Pooled over {s['maps']} images of cycle {last}: KS distance of the entries to N(0, 1) "
            f"{s['marginal']['ks']:.4f} (true samples stay under {s['marginal']['null_95']:.4f} in 95 % of cases); mean "
            f"{s['mean']:+.4f} (null deviation {s['mean_null_std']:.4f}); covariance eigenvalues {eigenvalues[0]:.3f} to "
            f"{eigenvalues[-1]:.3f} (Marchenko-Pastur range {low:.3f} to {high:.3f}).",
            f"The set as a whole: {s['verdict']}.",
        ],
        None,
        [
            Figure.of(folder / "orthogonal_gaussian_final.png", "The assigned noise against theory."),
            Figure.of(folder / "orthogonal_gaussian_init.png", "The base noise of the same images."),
        ],
    )


def provenance(summary: dict[str, Any]) -> Section:
    versions = ", ".join(f"{k} {v}" for k, v in summary["versions"].items())
    return Section(
        "How it was made",
        [
            f"{versions}. This run took {summary['seconds_this_run']:.0f} s. To repeat it, save the configuration below and run "
            "`ortho em --config FILE.yaml`."
        ],
        text=yaml.safe_dump(summary["config"], sort_keys=False),
    )
