"""The report of an E-step: pictures of rows, losses before and after, statistics of the noise, and rows that were not used."""

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

#: Bars of the histogram, and the quantile of the losses where its axis ends: a few outliers would squeeze all other bars.
BARS_SHOWN, SHOWN_TO = 30, 0.995
#: Quarantined rows shown for each reason, and the lines of `failures.jsonl` that are read to find them.
EXAMPLES_SHOWN, EXAMPLES_FROM = 3, 20_000

Pictures = dict[SampledRecord, RowPictures]


def write_report(job: AssignJob, model: ModelFolder, pairs: PairSet, folder: Store) -> None:
    """Write `report.html` into the folder of a finished run that has assigned rows.

    Raises whatever goes wrong, such as UserError for a damaged part and RunFailed for a worker that fails.
    """
    summary = AssignmentRun.parse(folder.read(ASSIGN_SUMMARY), f"{folder.location}/{ASSIGN_SUMMARY}")
    assignments = Assignments(folder.location)
    records = sampled_records(assignments)
    chosen = choose(records, job.seed)
    rows = chosen.every()
    taken = take_pictures(job, model, pairs, rows, noise_of(assignments, rows, model.latent_shape, model.image_size))
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
    """The quartiles: 25 %, 50 % and 75 % of the values are below them."""
    low, middle, high = np.quantile(np.asarray(values, float), (0.25, 0.5, 0.75)).tolist()
    return low, middle, high


def closer(records: Sequence[SampledRecord], summary: AssignmentRun) -> str:
    """How many images the model makes more closely at the matched noise than at the first noise."""
    count, nearer = len(records), sum(record.loss < record.initial_loss for record in records)
    which = f"{'all' if nearer == count else f'{nearer:,} of'} {counted(count, 'image')}"
    looked_at = " looked at" if count < summary.assigned else ""
    return f"For {which}{looked_at}, the search found noise at which the model makes a closer image than at the first noise."


def fell(records: Sequence[SampledRecord]) -> str:
    """The medians and quartiles of the loss, before and after, in words."""
    before, after = (quartiles([getattr(r, name) for r in records]) for name in ("initial_loss", "loss"))
    return (
        f"The median loss fell from {before[1]:.3g} to {after[1]:.3g}. Half of the images end between {after[0]:.3g} and "
        f"{after[2]:.3g}; they began between {before[0]:.3g} and {before[2]:.3g}."
    )


def leaning(check: GaussianCheck) -> str:
    """The result of the Gaussian check, and what it means for training on this noise."""
    far = [name for name, value in check.departures.items() if value > NOTABLE]
    if not far:
        return (
            "The matched noise of all images together cannot be distinguished from plain Gaussian noise. So a model that is "
            f"trained on it is sampled at the same kind of noise. ({check.verdict[:1].upper()}{check.verdict[1:]}.)"
        )
    return (
        f"The matched noise of all images together differs from plain Gaussian noise in {listed(far[:3])}. A model that is "
        "trained on it is sampled at plain noise, which it has not seen in training, so its images may not show all that it "
        "learned. The mean of all noises is subtracted before training, and ortho em searches the noise again in each cycle. "
        f"({check.verdict[:1].upper()}{check.verdict[1:]}.)"
    )


def unused(summary: AssignmentRun) -> str:
    if not summary.quarantined:
        return f"All {summary.rows:,} rows were used."
    reasons = listed([f"{reason} {count:,}" for reason, count in summary.quarantined_by_reason.items()])
    return f"{summary.quarantined:,} of {summary.rows:,} rows were not used: {reasons}."


def pictures(chosen: ChosenRows, taken: Pictures, summary: AssignmentRun, looked_at: int) -> list[Block]:
    """Groups of rows: the target, the image at the base noise and the image at the matched noise."""
    blocks: list[Block] = [
        "Each card shows the target as the search saw it, the model's image for its prompt at the base noise, and the model's "
        "image at the matched noise. File names are those of the pair set."
    ]
    if looked_at < summary.assigned:
        blocks.append(
            f"These rows and the losses below come from a sample of {looked_at:,} of the {summary.assigned:,} rows, spread over "
            "the whole set. Every report of this run has the same sample. The lowest and highest losses are those of the sample."
        )
    if summary.config.get("warm_start"):
        blocks.append(
            "The search began at the noise of earlier assignments (--warm-start). So the first loss of a row is the loss at that "
            "noise, not the loss at the base noise."
        )
    hardest = (
        (
            "The hardest prompts",
            "The prompts with the highest mean loss; the row with the median loss is shown for each.",
        )
        if chosen.prompts
        else ("The hardest rows", "The rows whose loss fell least, in percent.")
    )
    for (title, caption), rows in {
        ("The lowest losses", ""): chosen.best,
        ("The highest losses", "The highest first."): chosen.worst,
        ("A sample", "Drawn at random (by --seed), in the order of the set."): chosen.drawn,
        hardest: chosen.hardest,
    }.items():
        if rows:
            cards = [card(record, taken[record]) for record in rows]
            blocks += [Heading(title), Cards(["target", "base noise", "matched noise"], cards, caption)]
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
    """The losses before and after: in words, as a histogram on one axis, and as quantiles."""
    values = {
        "at the first noise" if summary.config.get("warm_start") else "at the base noise": [
            r.initial_loss for r in records
        ],
        "at the matched noise": [r.loss for r in records],
    }
    together = [value for each in values.values() for value in each]
    low, high = min(together), max(together)
    shown = float(np.quantile(together, SHOWN_TO))
    beyond = high > 1.5 * shown and shown > low
    top = shown if beyond else high
    edges = np.linspace(low, top if top > low else low + (abs(low) or 1.0) * 1e-3, BARS_SHOWN + 1).tolist()
    series = [histogram(name, each, edges, colour) for colour, (name, each) in enumerate(values.items())]
    caption = f"Share of {counted(len(records), 'row')} by loss, in {BARS_SHOWN} bars." + (
        f" The last bar includes all higher losses, up to {high:.3g}." if beyond else ""
    )
    header = ["loss", "lowest", "a quarter is below", "half is below", "three quarters are below", "highest"]
    rows = [
        [name, *(f"{value:.4g}" for value in (min(each), *quartiles(each), max(each)))] for name, each in values.items()
    ]
    rose = sum(record.loss >= record.initial_loss for record in records)
    stayed = f" For {counted(rose, 'row')} the search found nothing better than its first noise." if rose else ""
    evaluations = quartiles([record.evaluations for record in records])
    return [
        f"{fell(records)}{stayed} Half of the images took {evaluations[1]:.0f} evaluations or fewer.",
        Charts([Chart("rows, %", "loss", series, caption, y_includes=[0.0])]),
        Table(header, rows),
    ]


def read_as(summary: AssignmentRun) -> Iterator[Block]:
    """How the pair set was read."""
    recognised = summary.recognised
    lines = [
        ["place", summary.option("pairs")],
        ["read as", str(recognised["what"])],
        ["layout", str(recognised["layout"])],
        ["rows", f"{summary.rows:,}"],
        *([["images there", f"{recognised['images']:,}"]] if recognised.get("images") is not None else []),
        ["prompts", str(recognised["prompts"])],
        *(["note", str(note)] for note in entries(recognised["notes"])),
        *(["left aside", str(aside)] for aside in entries(recognised["left_aside"]) or ["nothing"]),
    ]
    yield "How the pair set was read:"
    yield Table(["", "pairs"], lines, text=True)


def entries(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []


def quarantine(summary: AssignmentRun, folder: Store) -> Iterator[Block]:
    """The rows that were not used, by reason, with examples from `failures.jsonl`."""
    yield Heading("Quarantine")
    if not summary.quarantined:
        yield "No row was quarantined: every row has an assignment."
        return
    yield (
        f"{summary.assigned:,} assigned + {summary.quarantined:,} quarantined = {summary.rows:,} rows. failures.jsonl lists all "
        "quarantined rows with their reasons; --retry-failures tries them again."
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
    """The first EXAMPLES_SHOWN failures of each reason, from the first EXAMPLES_FROM lines of `failures.jsonl`."""
    examples: dict[str, list[Failure]] = defaultdict(list)
    with folder.open("failures.jsonl") as stream:
        for line in itertools.islice(stream, EXAMPLES_FROM):
            failure = failure_of(line, folder)
            if len(examples[failure.reason]) < EXAMPLES_SHOWN:
                examples[failure.reason].append(failure)
    return examples
