"""The reports of `ortho reward`: for a file of prompts, and for one prompt."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ortho_core.pictures import load_sheet
from ortho_core.records.assignments import Assignments
from ortho_core.report.charts import Chart, Series
from ortho_core.report.page import Block, Cell, Charts, Embedded, Fact, PictureRow, PictureRows, Section, Table, render
from ortho_core.rewards.names import parse_rewards
from ortho_core.storage.open import open_store
from ortho_core.storage.store import Store
from rayjobs.pool.derived import PICTURE_FOLDER
from rayjobs.reports.curves import reward_charts
from rayjobs.reports.models import interval, places
from rayjobs.reports.one_search import META
from rayjobs.reports.parts import Accounted, Phase, cost_table, gaussian_section, provenance, rows_section
from rayjobs.reports.summaries import OnePromptSearch, RewardGain, RewardSummary
from rayjobs.reports.words import counted, duration
from rayjobs.reward.gains import recorded_rewards
from rayjobs.reward.pictures import AFTER, BEFORE, PICTURED

#: Most prompts in the chart of the rewards' distribution.
IN_CHART = 2000

#: How many evaluations of one prompt have their picture in the report, with `--save-steps`.
STEPS = 12


def write_report(folder: Store, summary: RewardSummary) -> None:
    """Write `report.html` into the folder of a run over a file of prompts, of which at least one was searched."""
    found, spec = Assignments(folder.location), summary.option("reward")
    optimised = list(parse_rewards(spec))
    sections = [
        Section("Rewards", [gains_table(summary.rewards, optimised), Charts(distributions(found, optimised))]),
        gaussian_section(folder, "the prompts' noise maps, pooled"),
        rows_section([Accounted.of("search", summary)], folder),
        provenance("reward", summary, ["What it cost:", cost_table([search(summary)])]),
    ]
    if pictures := before_and_after(found):
        sections.insert(0, Section("Pictures", [pictures]))
    html = render(
        f"Reward optimisation of {Path(summary.option('model')).name}",
        f"{counted(summary.assigned, 'prompt')} of {summary.option('prompts')}, rewards {spec}",
        sections,
        sentences(summary.rewards, optimised),
        [
            Fact(f"{summary.assigned:,} + {summary.quarantined:,}", "prompts searched + quarantined"),
            Fact(f"{summary.evaluations:,}", "evaluations (generator and rewards)"),
            Fact(duration(summary.seconds_this_run), "of search, in the last start"),
        ],
    )
    folder.replace("report.html", html.encode())


def search(summary: RewardSummary) -> Phase:
    rows, seconds = summary.rows_this_run, summary.seconds_this_run
    rate = f"{rows / seconds:.3g} prompts/s" if rows and seconds else ""
    return Phase.on(summary.config, "search", f"{summary.evaluations:,} evaluations", seconds, rate)


def sentences(rewards: Mapping[str, RewardGain], optimised: Sequence[str]) -> list[str]:
    """One sentence per reward: first the optimised ones, then the others, which are independent judges."""
    lines = []
    for name, reward in sorted(rewards.items(), key=lambda item: item[0] not in optimised):
        gain, decimals = reward.gain, places([reward.gain])
        way = "higher than" if gain.low > 0 else "lower than" if gain.high < 0 else "about as high as"
        kind = "" if name in optimised else " (not optimised)"
        lines.append(
            f"The reward {name}{kind} is {way} before: {reward.before:.{decimals}f} before, {reward.after:.{decimals}f} "
            f"after, on average; higher for {reward.improved:.0%} of the prompts."
        )
    return lines


def gains_table(rewards: Mapping[str, RewardGain], optimised: Sequence[str]) -> Table:
    rows: list[list[Cell | str]] = []
    for name, reward in rewards.items():
        gain, decimals = reward.gain, places([reward.gain])
        rows.append(
            [
                Cell(name, "" if name in optimised else "not optimised"),
                f"{reward.before:.{decimals}f}",
                f"{reward.after:.{decimals}f}",
                Cell(f"{gain.value:+.{decimals}f}", interval(gain, decimals)),
                f"{reward.improved:.1%}",
                f"{gain.count:,}",
            ]
        )
    legend = [
        ("before, after", "mean over the prompts, at the base noise and at the optimised noise"),
        ("gain", "mean, with its 95 % interval over prompts (1.96 standard errors)"),
        ("risen", "share of the prompts whose image scores higher than before"),
    ]
    return Table(["reward", "before", "after", "gain", "risen", "n"], rows, legend)


def distributions(found: Assignments, optimised: Sequence[str]) -> list[Chart]:
    """For each reward, the share of prompts with at most a given score, before and after."""
    apart = -(-len(found) // IN_CHART)
    kept = [pair for i, pair in enumerate(recorded_rewards(found)) if i % apart == 0]
    charts = []
    for name in kept[0][1]:
        series = []
        for when, label, colour in ((0, "base noise", 0), (1, "optimised noise", 1)):
            values = sorted(pair[when][name] for pair in kept)
            share = np.arange(1, len(values) + 1) / len(values)
            series.append(Series(label, values, share.tolist(), colour, points=len(values) <= 40))
        kind = "" if name in optimised else " (not optimised)"
        caption = "Share of the prompts with at most this score; a curve further right is better."
        charts.append(Chart(f"{name}{kind}, distribution over prompts", name, series, caption, y_includes=[0.0, 1.0]))
    return charts


def before_and_after(found: Assignments) -> PictureRows | None:
    """The pictures of the first prompts, before and after; None if there are none."""
    store = found.folder.child(PICTURE_FOLDER)
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
    caption = "Images of the first prompts, at the base noise and at the noise that was optimised from it."
    return PictureRows.of(sheets, caption, [row["prompt"] for row in rows])


def write_report_of_one(folder: Path) -> None:
    """Write `report.html` into the folder of one prompt's search, from meta.json and the pictures."""
    search = OnePromptSearch.read(folder / META)
    pictures: list[Block] = [large(folder)]
    if steps := sorted((folder / "steps").glob("*.png")):
        pictures.append(along_the_way(steps))
    rows: list[list[Cell | str]] = []
    sentences = []
    for name, reward in search.rewards.items():
        before, after, optimised = reward.before, reward.after, name in search.optimised
        label = Cell(name, "" if optimised else "not optimised")
        rows.append([label, f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}"])
        way = "higher than" if after > before else "lower than" if after < before else "as high as"
        kind = "" if optimised else " (not optimised)"
        sentences.append(f"The reward {name}{kind} is {way} before: {before:.4f} before, {after:.4f} after.")
    legend = [("before, after", "scores of the saved pictures, which are what a viewer sees")]
    table = Table(["reward", "before", "after", "gain"], rows, legend)
    charts = Charts(reward_charts({name: search.history[name] for name in search.optimised}))
    cost = f"{counted(search.evaluations, 'evaluation')} in {duration(search.seconds_this_run)}, loading included."
    sections = [
        Section("Pictures", pictures),
        Section("Rewards", [table, charts]),
        gaussian_section(open_store(folder), "the one noise map"),
        provenance("reward", search, [cost]),
    ]
    facts = [
        Fact(f"{search.best_evaluation} of {search.evaluations}", "best evaluation"),
        Fact(duration(search.seconds_this_run), "of search"),
    ]
    subtitle = f"Reward optimisation of {Path(search.option('model')).name}, rewards {search.option('reward')}"
    (folder / "report.html").write_text(render(f"“{search.prompt}”", subtitle, sections, sentences, facts))


def large(folder: Path) -> PictureRows:
    """The image before and after, side by side, in a size at which both fit a phone."""
    images = []
    for name in ("initial", "best"):
        with Image.open(folder / f"{name}.png") as opened:
            images.append(Embedded.of(opened.convert("RGB"), exact=256, preview=512))
    width = images[0].width
    cell = width * max(1, 256 // width) if width <= 256 else 384
    return PictureRows([PictureRow("", images)], ["base noise", "optimised noise"], "Before and after.", cell)


def along_the_way(steps: Sequence[Path]) -> PictureRows:
    """Pictures of some evaluations, from the first to the last, in one row."""
    chosen = sorted({round(i) for i in np.linspace(0, len(steps) - 1, min(STEPS, len(steps)))})
    images = []
    for i in chosen:
        with Image.open(steps[i]) as opened:
            images.append(Embedded.of(opened.convert("RGB")))
    width = images[0].width
    cell = width * max(1, round(64 / width)) if width <= 96 else 112
    names = [f"evaluation {i + 1}" for i in chosen]
    return PictureRows([PictureRow("", images)], names, "Along the search.", cell)
