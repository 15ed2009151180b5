"""The report of an E-step: rows as pictures, the losses before and after, what was not used, and what the noise is like."""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from ortho_core.generators.model_folder import ModelFolder
from ortho_core.noise.gaussianity import NOTABLE
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Failure, row_name
from ortho_core.records.assignments import Assignments
from ortho_core.records.sampled import SampledRecord, noise_of, sampled_records
from ortho_core.report.charts import Chart, histogram
from ortho_core.report.page import Block, Card, Cards, Cell, Charts, Fact, Heading, Section, Table, render
from ortho_core.storage.store import Store
from rayjobs.assign.chosen import ChosenRows, HardPrompt, choose
from rayjobs.assign.config import AssignJob
from rayjobs.assign.pictures import RowPictures, take_pictures
from rayjobs.pool.derived import REPORT
from rayjobs.pool.ledger import ASSIGN_SUMMARY
from rayjobs.reports.parts import Phase, cost_table, failure_of, gaussian_check, gaussian_section, provenance
from rayjobs.reports.summaries import AssignmentRun, GaussianCheck
from rayjobs.reports.words import counted, duration, listed

#: Bars of the histogram, and the share of the losses that its axis reaches to: a few rows far out would squeeze the others.
BARS_SHOWN, SHOWN_TO = 30, 0.995
#: Quarantined rows that are shown of each reason, and the lines of `failures.jsonl` that they are looked for in.
EXAMPLES_SHOWN, EXAMPLES_FROM = 3, 20_000

Pictures = dict[SampledRecord, RowPictures]


def write_report(job: AssignJob, model: ModelFolder, pairs: PairSet, folder: Store) -> None:
    """Write `report.html` into the folder of a finished run that has assigned rows.

    Raises whatever keeps it from being made: parts that are damaged, a worker that fails.
    """
    summary = AssignmentRun.parse(folder.read(ASSIGN_SUMMARY), f"{folder.location}/{ASSIGN_SUMMARY}")
    found = Assignments(folder.location)
    records = sampled_records(found)
    chosen = choose(records, job.seed)
    rows = chosen.every()
    taken = take_pictures(job, model, pairs, rows, noise_of(found, rows, model.latent_shape))
    check = gaussian_check(folder, "final")
    gaussian = gaussian_section(folder, "the images' noise maps, pooled")
    cost = cost_table([search(summary)])
    sections = [
        Section("Pictures", pictures(chosen, dict(zip(rows, taken, strict=True)), summary, len(records))),
        Section("Losses", losses(records, summary)),
        Section(gaussian.title, [leaning(check), *gaussian.blocks[1:]]),
        Section("Rows", [*read_as(summary), *quarantine(summary, folder)]),
        provenance("assign", summary, ["What it cost:", cost]),
    ]
    html = render(
        f"The noise that {model.path.name} maps closest to each image",
        f"{counted(summary.assigned, 'image')} of {summary.option('pairs')}",
        sections,
        [
            closer(records, summary),
            fell(records),
            leaning(check).partition(". ")[0].removesuffix(".") + ".",
            unused(summary),
        ],
        [
            Fact(f"{summary.assigned:,} + {summary.quarantined:,}", "rows assigned + quarantined"),
            Fact(f"{summary.mean_initial_loss:.4f} → {summary.mean_loss:.4f}", "mean loss"),
            Fact(f"{summary.all_evaluations:,}", "evaluations"),
            Fact(duration(summary.seconds_this_run), "of search, in the last start"),
        ],
    )
    folder.replace(REPORT, html.encode())


def search(summary: AssignmentRun) -> Phase:
    rate = f"{summary.rows_per_second:.3g} rows/s" if summary.rows_per_second else ""
    work = f"{summary.all_evaluations:,} evaluations"
    return Phase.on(summary.config, "E-step", work, summary.seconds_this_run, rate)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """A quarter, half and three quarters of the values are below."""
    low, middle, high = np.quantile(np.asarray(values, float), (0.25, 0.5, 0.75)).tolist()
    return low, middle, high


def closer(records: Sequence[SampledRecord], summary: AssignmentRun) -> str:
    """What was found, before any figure."""
    count, nearer = len(records), sum(record.loss < record.initial_loss for record in records)
    which = f"{'all' if nearer == count else f'{nearer:,} of'} {counted(count, 'image')}"
    looked_at = " looked at" if count < summary.assigned else ""
    return f"For {which}{looked_at} the search found noise from which the model makes a closer picture than it did at first."


def fell(records: Sequence[SampledRecord]) -> str:
    """The medians and quartiles in a sentence."""
    before, after = (quartiles([getattr(r, name) for r in records]) for name in ("initial_loss", "loss"))
    return (
        f"The median loss fell from {before[1]:.3g} to {after[1]:.3g}. Half of the images end between {after[0]:.3g} and "
        f"{after[2]:.3g}; they began between {before[0]:.3g} and {before[2]:.3g}."
    )


def leaning(check: GaussianCheck) -> str:
    """What the Gaussian check says, and what that means to whoever trains on the noise."""
    far = [name for name, value in check.departures.items() if value > NOTABLE]
    if not far:
        return (
            "All noise that was found, taken together, cannot be told from ordinary Gaussian noise. So a model that is trained "
            f"on it meets the same kind of noise when it is sampled. ({check.verdict[:1].upper()}{check.verdict[1:]}.)"
        )
    return (
        f"All noise that was found, taken together, differs from ordinary Gaussian noise in {listed(far[:3])}. A model that is "
        "trained on it is sampled at noise that differs from what it has seen, so a part of what it learns may not show there; "
        "a mean that it has in common is taken off before training, and ortho em finds the noise again in each cycle. "
        f"({check.verdict[:1].upper()}{check.verdict[1:]}.)"
    )


def unused(summary: AssignmentRun) -> str:
    if not summary.quarantined:
        return f"All {summary.rows:,} rows were used."
    reasons = listed([f"{reason} {count:,}" for reason, count in summary.quarantined_by_reason.items()])
    return f"{summary.quarantined:,} of {summary.rows:,} rows were not used: {reasons}."


def pictures(chosen: ChosenRows, taken: Pictures, summary: AssignmentRun, looked_at: int) -> list[Block]:
    """Groups of rows: the target, the image at the base noise and that at the noise that was found."""
    blocks: list[Block] = [
        "Each image of the set as the search saw it, what the model makes of its prompt at the base noise, and what it makes of "
        "it at the noise that was found. File names are as the pair set has them."
    ]
    if looked_at < summary.assigned:
        blocks.append(
            f"These rows, and the losses below, are of {looked_at:,} rows from all over the {summary.assigned:,}, the same ones "
            "in every report of this run: the best and the worst are those of the rows that were looked at."
        )
    if summary.config.get("warm_start"):
        blocks.append(
            "The search began at the noise of earlier assignments (--warm-start): the first loss of a row is the loss there, and "
            "not that of the image at the base noise."
        )
    hardest = (
        (
            "The hardest prompts",
            "The prompts with the highest mean loss, and of each a row in the middle of its losses.",
        )
        if chosen.prompts
        else ("The hardest rows", "Those whose loss fell least, by its share.")
    )
    for (title, caption), rows in {
        ("The lowest losses", ""): chosen.best,
        ("The highest losses", "The highest first."): chosen.worst,
        ("A sample", "Drawn by the seed, in the order of the set."): chosen.drawn,
        hardest: chosen.hardest,
    }.items():
        if rows:
            cards = [card(record, taken[record]) for record in rows]
            blocks += [Heading(title), Cards(["target", "base noise", "noise found"], cards, caption)]
    return [*blocks, prompt_table(chosen.prompts)] if chosen.prompts else blocks


def prompt_table(prompts: Sequence[HardPrompt]) -> Table:
    rows = [[p.prompt, f"{p.rows:,}", f"{p.before:.4f}", f"{p.after:.4f}"] for p in prompts]
    return Table(["prompt", "rows", "mean loss before", "after"], rows)


def card(record: SampledRecord, taken: RowPictures) -> Card:
    change = f"loss {record.initial_loss:.3g} → {record.loss:.3g}, {0.0 - record.fall:+.0%}"
    return Card(
        [taken.target, taken.base, taken.matched], record.prompt, [change, row_name(record.image, record.sample_id)]
    )


def losses(records: Sequence[SampledRecord], summary: AssignmentRun) -> list[Block]:
    """The losses before and after: in words, as a histogram on one axis, and their quantiles."""
    values = {
        "at the first noise" if summary.config.get("warm_start") else "at the base noise": [
            r.initial_loss for r in records
        ],
        "at the noise found": [r.loss for r in records],
    }
    together = [value for each in values.values() for value in each]
    low, high = min(together), max(together)
    shown = float(np.quantile(together, SHOWN_TO))
    beyond = high > 1.5 * shown and shown > low
    top = shown if beyond else high
    edges = np.linspace(low, top if top > low else low + (abs(low) or 1.0) * 1e-3, BARS_SHOWN + 1).tolist()
    series = [histogram(name, each, edges, colour) for colour, (name, each) in enumerate(values.items())]
    caption = f"Share of {counted(len(records), 'row')} by their loss, in {BARS_SHOWN} bars." + (
        f" The last bar has all losses from there up to {high:.3g}." if beyond else ""
    )
    header = ["loss", "lowest", "a quarter is below", "half is below", "three quarters are below", "highest"]
    rows = [
        [name, *(f"{value:.4g}" for value in (min(each), *quartiles(each), max(each)))] for name, each in values.items()
    ]
    rose = sum(record.loss >= record.initial_loss for record in records)
    stayed = f" {counted(rose, 'row')} found nothing better than where the search began." if rose else ""
    evaluations = quartiles([record.evaluations for record in records])
    return [
        f"{fell(records)}{stayed} Half of the images took {evaluations[1]:.0f} evaluations or fewer.",
        Charts([Chart("rows, %", "loss", series, caption, y_includes=[0.0])]),
        Table(header, rows),
    ]


def read_as(summary: AssignmentRun) -> Iterator[Block]:
    """What was recognised at the place of the pairs."""
    said = summary.recognised
    lines = [
        ["place", summary.option("pairs")],
        ["read as", str(said["what"])],
        ["layout", str(said["layout"])],
        ["rows", f"{summary.rows:,}"],
        *([["images there", f"{said['images']:,}"]] if said.get("images") is not None else []),
        ["prompts", str(said["prompts"])],
        *(["note", str(note)] for note in entries(said["notes"])),
        *(["left aside", str(aside)] for aside in entries(said["left_aside"]) or ["nothing"]),
    ]
    yield "What was recognised at the place of the pairs:"
    yield Table(["", "pairs"], lines, text=True)


def entries(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []


def quarantine(summary: AssignmentRun, folder: Store) -> Iterator[Block]:
    """The rows that were not used, by their reason, with examples from `failures.jsonl`."""
    yield Heading("Quarantine")
    if not summary.quarantined:
        yield "No row was quarantined: all that went in came out as an assignment."
        return
    yield (
        f"{summary.assigned:,} assigned + {summary.quarantined:,} quarantined = {summary.rows:,} rows. failures.jsonl has all "
        "that were quarantined, with their reasons; --retry-failures tries them again."
    )
    examples = first_of_each_reason(folder)
    rows: list[Sequence[Cell | str] | str] = []
    for reason, count in summary.quarantined_by_reason.items():
        shown = examples[reason]
        some = f", {len(shown)} of them" if 0 < len(shown) < count else ""
        rows.append(f"{reason}: {counted(count, 'row')}{some}")
        rows += [[row_name(f.image, f.sample_id), f"{f.row:,}", f.message] for f in shown]
    yield Table(["image, or file of the row", "row", "what is wrong"], rows, text=True)


def first_of_each_reason(folder: Store) -> dict[str, list[Failure]]:
    """The first examples of each reason near the beginning of `failures.jsonl`."""
    found: dict[str, list[Failure]] = defaultdict(list)
    with folder.open("failures.jsonl") as stream:
        for line in itertools.islice(stream, EXAMPLES_FROM):
            failure = failure_of(line, folder)
            if len(found[failure.reason]) < EXAMPLES_SHOWN:
                found[failure.reason].append(failure)
    return found
