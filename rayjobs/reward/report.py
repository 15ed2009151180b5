"""The reports of `ortho reward`: over a file of prompts, and of one prompt."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ortho_core.pictures import load_sheet
from ortho_core.records.assignments import Assignments
from ortho_core.report.charts import Chart, Series
from ortho_core.report.page import Block, Cell, Charts, Embedded, Fact, PictureRow, PictureRows, Section, Table, render
from ortho_core.rewards import parse_rewards
from ortho_core.storage.open import open_store
from ortho_core.storage.store import Store
from rayjobs.reports.curves import reward_charts
from rayjobs.reports.models import interval, places
from rayjobs.reports.parts import (
    Accounted,
    Phase,
    cost_table,
    counted,
    duration,
    gaussian_section,
    provenance,
    rows_section,
)
from rayjobs.reward.gains import told_rewards
from rayjobs.reward.pictures import AFTER, BEFORE, FOLDER, PICTURED

#: Prompts that the chart of the rewards' distribution is of, at most.
IN_CHART = 2000

#: Evaluations of one prompt whose pictures are shown, where they were kept.
STEPS = 12


def write_report(folder: Store, summary: Mapping[str, Any]) -> None:
    """Write `report.html` into the folder of a run over a file of prompts, of which some were used."""
    found, config = Assignments(folder.location), summary["config"]
    optimised = list(parse_rewards(config["reward"]))
    sections = [
        Section("Rewards", [gains_table(summary["rewards"], optimised), Charts(distributions(found, optimised))]),
        gaussian_section(folder, "the prompts' noise maps, pooled"),
        rows_section([Accounted.of("search", summary)], folder),
        provenance("reward", summary, ["What it cost:", cost_table([search(summary)])]),
    ]
    if pictures := before_and_after(found):
        sections.insert(0, Section("Pictures", [pictures]))
    account = f"{summary['assigned']:,} + {summary['quarantined']:,}"
    html = render(
        f"Reward optimisation of {Path(config['model']).name}",
        f"{counted(summary['assigned'], 'prompt')} of {config['prompts']}, rewards {config['reward']}",
        sections,
        sentences(summary["rewards"], optimised),
        [Fact(account, "prompts searched + quarantined"), *facts(summary)],
    )
    folder.replace("report.html", html.encode())


def facts(summary: Mapping[str, Any]) -> list[Fact]:
    return [
        Fact(f"{summary['evaluations']:,}", "evaluations (generator and rewards)"),
        Fact(duration(summary["seconds_this_run"]), "of search, in the last start"),
    ]


def search(summary: Mapping[str, Any]) -> Phase:
    work, seconds = f"{summary['evaluations']:,} evaluations", summary["seconds_this_run"]
    rows = summary["rows_this_run"]
    rate = f"{rows / seconds:.3g} prompts/s" if rows and seconds else ""
    return Phase.on(summary["config"], "search", work, seconds, rate)


def sentences(rewards: Mapping[str, Mapping[str, Any]], optimised: Sequence[str]) -> list[str]:
    """What each reward did, those that were not optimised apart: they are the independent judges."""
    said = []
    for name, told in sorted(rewards.items(), key=lambda item: item[0] not in optimised):
        gain = told["gain"]
        decimals = places([gain])
        way = "rose" if gain["low"] > 0 else "fell" if gain["high"] < 0 else "did not clearly change"
        kind = "" if name in optimised else ", which was not optimised,"
        said.append(
            f"The mean {name}{kind} {way}: {told['before']:.{decimals}f} before, {told['after']:.{decimals}f} after; it is "
            f"higher for {told['improved']:.0%} of the prompts."
        )
    return said


def gains_table(rewards: Mapping[str, Mapping[str, Any]], optimised: Sequence[str]) -> Table:
    rows: list[list[Cell | str]] = []
    for name, told in rewards.items():
        gain = told["gain"]
        decimals = places([gain])
        rows.append(
            [
                Cell(name, "" if name in optimised else "not optimised"),
                f"{told['before']:.{decimals}f}",
                f"{told['after']:.{decimals}f}",
                Cell(f"{gain['value']:+.{decimals}f}", interval(gain, decimals)),
                f"{told['improved']:.1%}",
                f"{gain['count']:,}",
            ]
        )
    legend = [
        ("before, after", "mean over the prompts, at the base noise and at the noise that was found"),
        ("gain", "mean, with its 95 % interval over prompts (1.96 standard errors)"),
        ("risen", "share of the prompts whose image scores higher than before"),
    ]
    return Table(["reward", "before", "after", "gain", "risen", "n"], rows, legend)


def distributions(found: Assignments, optimised: Sequence[str]) -> list[Chart]:
    """For each reward, the share of the prompts that score no more than a value, before and after."""
    apart = -(-len(found) // IN_CHART)
    kept = [pair for i, pair in enumerate(told_rewards(found)) if i % apart == 0]
    charts = []
    for name in kept[0][1]:
        series = []
        for when, label, colour in ((0, "base noise", 0), (1, "optimised noise", 1)):
            values = sorted(pair[when][name] for pair in kept)
            share = np.arange(1, len(values) + 1) / len(values)
            series.append(Series(label, values, share.tolist(), colour, points=len(values) <= 40))
        kind = "" if name in optimised else " (not optimised)"
        caption = "Share of the prompts whose image scores no more than that: the further right, the better."
        charts.append(Chart(f"{name}{kind}, distribution over prompts", name, series, caption, y_includes=[0.0, 1.0]))
    return charts


def before_and_after(found: Assignments) -> PictureRows | None:
    """The pictures that a worker took of the first prompts, and their rewards; None if there are none."""
    store = found.folder.child(FOLDER)
    if not (store.exists(BEFORE) and store.exists(AFTER)):
        return None
    count = min(PICTURED, len(found))
    rows = found.rows(range(count), ["prompt"])
    sheets = {}
    for label, name in (("base noise", BEFORE), ("optimised noise", AFTER)):
        content = io.BytesIO(store.read(name))
        with Image.open(content) as sheet:
            size = (sheet.height, sheet.width // count)
        sheets[label] = load_sheet(content, size)
    caption = "The first prompts' images, before and after: the same noise, and as the rewards would have it."
    return PictureRows.of(sheets, caption, [row["prompt"] for row in rows])


def write_report_of_one(folder: Path) -> None:
    """Write `report.html` into the folder of one prompt's search, from meta.json and the pictures."""
    meta = json.loads((folder / "meta.json").read_text())
    rewards, optimised = meta["rewards"], list(meta["optimised"])
    history = {name: meta["history"][name] for name in optimised}
    pictures: list[Block] = [large(folder)]
    if steps := sorted((folder / "steps").glob("*.png")):
        pictures.append(along_the_way(steps))
    rows: list[list[Cell | str]] = []
    for name, told in rewards.items():
        gain = told["after"] - told["before"]
        label = Cell(name, "" if name in optimised else "not optimised")
        rows.append([label, f"{told['before']:.4f}", f"{told['after']:.4f}", f"{gain:+.4f}"])
    legend = [("before, after", "of the pictures as they are saved, which is what a viewer judges")]
    table = Table(["reward", "before", "after", "gain"], rows, legend)
    cost = f"{counted(meta['evaluations'], 'evaluation')} in {duration(meta['seconds_this_run'])}, loading included."
    sections = [
        Section("Pictures", pictures),
        Section("Rewards", [table, Charts(reward_charts(history))]),
        gaussian_section(open_store(folder), "the one noise map"),
        provenance("reward", meta, [cost]),
    ]
    said = []
    for name, told in rewards.items():
        way = "rose" if told["after"] > told["before"] else "fell" if told["after"] < told["before"] else "stayed"
        kind = "" if name in optimised else ", which was not optimised,"
        said.append(f"{name}{kind} {way} from {told['before']:.4f} to {told['after']:.4f}.")
    facts = [
        Fact(f"{meta['best_evaluation']} of {meta['evaluations']}", "best evaluation"),
        Fact(duration(meta["seconds_this_run"]), "of search"),
    ]
    subtitle = f"Reward optimisation of {Path(meta['config']['model']).name}, rewards {meta['config']['reward']}"
    (folder / "report.html").write_text(render(f"“{meta['prompt']}”", subtitle, sections, said, facts))


def large(folder: Path) -> PictureRows:
    """The image before and after, side by side, as large as a phone has room for both."""
    images = []
    for name in ("initial", "best"):
        with Image.open(folder / f"{name}.png") as opened:
            images.append(Embedded.of(opened.convert("RGB"), exact=256, preview=512))
    width = images[0].width
    cell = width * max(1, 256 // width) if width <= 256 else 384
    return PictureRows([PictureRow("", images)], ["base noise", "optimised noise"], "Before and after.", cell)


def along_the_way(steps: Sequence[Path]) -> PictureRows:
    """Pictures of evaluations from first to last, in one row."""
    chosen = sorted({round(i) for i in np.linspace(0, len(steps) - 1, min(STEPS, len(steps)))})
    images = []
    for i in chosen:
        with Image.open(steps[i]) as opened:
            images.append(Embedded.of(opened.convert("RGB")))
    width = images[0].width
    cell = width * max(1, round(64 / width)) if width <= 96 else 112
    names = [f"evaluation {i + 1}" for i in chosen]
    return PictureRows([PictureRow("", images)], names, "Along the search.", cell)
