"""Parts that the jobs' reports share: how it was made, the rows, the Gaussian check, the cost.

Each function returns a section or a block of `ortho_core.report.page`, made from a job's files. The parts about judged models
are in `models`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import yaml
from pydantic import TypeAdapter, ValidationError

from ortho_core.errors import needed
from ortho_core.pairs.rows import Failure, row_name
from ortho_core.records.plan import Settings
from ortho_core.report.page import Block, Cell, Figure, Folded, Section, Table
from ortho_core.storage.store import Store
from ortho_core.text.parsing import NotParsedError, first_fault, json_object
from rayjobs.reports.summaries import AssignSummary, GaussianCheck, Made
from rayjobs.reports.words import duration

#: How many quarantined rows a report lists.
FIRST_FAILURES = 8


@dataclass(frozen=True)
class Accounted:
    """The rows of one step: rows = used + quarantined."""

    step: str
    rows: int
    used: int
    reasons: Mapping[str, int]

    @property
    def quarantined(self) -> int:
        return self.rows - self.used

    @staticmethod
    def of(step: str, summary: AssignSummary) -> "Accounted":
        """From the summary of `assign` or `reward`."""
        return Accounted(step, summary.rows, summary.assigned, summary.quarantined_by_reason)


def rows_section(steps: Sequence[Accounted], folder: Store | None = None) -> Section:
    """The counts of each step's rows, and the first quarantined rows, from `failures.jsonl` in `folder`."""
    lines = [
        [
            s.step,
            f"{s.rows:,}",
            f"{s.used:,}",
            f"{s.quarantined:,}",
            ", ".join(f"{reason} {count:,}" for reason, count in s.reasons.items()) or "–",
        ]
        for s in steps
    ]
    blocks: list[Block] = [
        "Every row either has a result or is in quarantine with a reason: rows = used + quarantined.",
        Table(["step", "rows", "used", "quarantined", "reasons"], lines),
    ]
    failures = first_failures(folder) if folder is not None else []
    if failures:
        total = max(s.quarantined for s in steps)
        words = [[row_name(f.image, f.sample_id), str(f.row), f.reason, f.message] for f in failures]
        which = "The quarantined rows" if total <= len(failures) else f"The first of {total:,} quarantined rows"
        blocks += [
            f"{which}, from failures.jsonl:",
            Table(["image, or file of the row", "row", "reason", "message"], words, text=True),
        ]
    return Section("Rows", blocks)


def quarantine_reasons(folder: Store) -> dict[str, int]:
    """The number of rows in `failures.jsonl` for each reason."""
    with folder.open("failures.jsonl") as stream:
        return dict(sorted(Counter(failure_of(line, folder).reason for line in stream).items()))


def first_failures(folder: Store) -> list[Failure]:
    """The first rows in `failures.jsonl`; none if there is no such file."""
    try:
        with folder.open("failures.jsonl") as stream:
            lines = [stream.readline() for _ in range(FIRST_FAILURES)]
    except FileNotFoundError:
        return []
    return [failure_of(line, folder) for line in lines if line.strip()]


def failure_of(line: bytes, folder: Store) -> Failure:
    """The quarantined row of a line of `failures.jsonl`. Raises UserError for any other line."""
    where = f"{folder.location}/failures.jsonl"
    return needed(_failure, line, where, remedy="delete it, and the same command writes it again")


def _failure(line: bytes, where: str) -> Failure:
    try:
        return TypeAdapter(Failure).validate_python(json_object(line, where))
    except ValidationError as error:
        raise NotParsedError(where, "is damaged", first_fault(error)) from error


def gaussian_check(folder: Store, when: str) -> GaussianCheck:
    """The statistics of the noise `init` or `final`. Raises UserError if the file holds anything else."""
    name = f"orthogonal_gaussian_{when}.json"
    return GaussianCheck.parse(folder.read(name), f"{folder.location}/{name}")


def gaussian_section(folder: Store, of_what: str) -> Section:
    """The assigned noise compared with N(0, I), from `orthogonal_gaussian_{init,final}.{json,png}` in `folder`."""
    base, final = (gaussian_check(folder, when) for when in ("init", "final"))
    far = [[name, f"{base.departures[name]:.1f}", f"{value:.1f}"] for name, value in final.departures.items()]
    table = Table(
        [Cell("distance from N(0, I)", "in null standard deviations"), "base noise", "assigned noise"],
        far,
        [
            ("KS", "in units of its 95 % quantile instead"),
            ("of a patch entry", "the largest of all entries; 2 to 4 is expected for true samples"),
        ],
    )
    plots = [folder.read(f"orthogonal_gaussian_{when}.png") for when in ("final", "init")]
    before = Figure.plot_of(plots[1], "The base noise against theory.", least=900)
    return Section(
        "Is the noise still Gaussian?",
        [
            f"{final.verdict[:1].upper()}{final.verdict[1:]}.",
            "A fixed rotation leaves N(0, I) unchanged. A rotation that is searched for an image keeps the norm of every patch, "
            f"but not independence. Over {of_what}: KS distance of the entries to N(0, 1) {final.marginal.ks:.4f} (true samples "
            f"are below {final.marginal.null_95:.4f} in 95 % of cases){spectrum(final)}.",
            Figure.plot_of(plots[0], "The assigned noise against theory.", least=900),
            Folded("Each statistic, and the base noise of the same images", blocks=[table, before]),
        ],
    )


def spectrum(check: GaussianCheck) -> str:
    """The range of the covariance's eigenvalues; empty with too few patches for an expected range."""
    if check.patches < 2 * check.dimension:
        return ""
    low, high = check.covariance.marchenko_pastur
    eigenvalues = check.covariance.eigenvalues
    return (
        f"; covariance eigenvalues {eigenvalues[0]:.3f} to {eigenvalues[-1]:.3f} (Marchenko-Pastur range {low:.3f} to "
        f"{high:.3f})"
    )


@dataclass(frozen=True)
class Phase:
    """The work, time and workers of one step of a run. `rate` is text such as `75 images/s`."""

    name: str
    work: str
    seconds: float | None
    rate: str
    workers: int
    cpus_each: float
    gpus_each: float | None

    @staticmethod
    def on(settings: Settings, name: str, work: str, seconds: float | None, rate: str) -> "Phase":
        """With the workers in the configuration of `assign`, `train`, `reward` or `evaluate`."""
        workers = int(str(settings.get("num_workers", settings.get("workers", 1))).rpartition(":")[2])
        options = (settings.get(option) for option in ("cpus_per_worker", "gpus_per_worker"))
        cpus, gpus = (float(value) if isinstance(value, int | float) else None for value in options)
        return Phase(name, work, seconds, rate, max(1, workers), cpus or 1.0, gpus)

    def cells(self) -> list[Cell | str]:
        hours = self.workers * (self.seconds or 0) / 3600
        each = f"{self.workers} × {self.cpus_each:g} CPU" + (f" + {self.gpus_each:g} GPU" if self.gpus_each else "")
        spent = f"{hours * self.cpus_each:.3g}" + (f" + {hours * self.gpus_each:.3g}" if self.gpus_each else "")
        time = duration(self.seconds) if self.seconds is not None else "–"
        return [self.name, self.work, time, self.rate or "–", each, spent if self.seconds is not None else "–"]


def cost_table(phases: Sequence[Phase]) -> Table:
    """Work, time and workers of each step."""
    hours = "CPU + GPU hours" if any(p.gpus_each for p in phases) else "CPU hours"
    legend = [
        ("evaluation", "forward and backward of the generator for one image, the unit of an E-step's cost"),
        ("time", "of the last start only: after a resume, earlier starts are not in it"),
        (
            hours,
            "time × the requested workers; fewer may have run if the cluster had no room. GPUs are counted if --gpus-per-worker "
            "is set",
        ),
    ]
    return Table(["step", "work", "time", "rate", "workers", hours], [p.cells() for p in phases], legend)


def provenance(verb: str, made: Made, others: Sequence[Block] = ()) -> Section:
    """The versions and the configuration in a job's summary; the blocks `others` come before the configuration."""
    versions = [[name, version] for name, version in made.versions.items()]
    return Section(
        "How it was made",
        [
            f"To repeat the run, save the configuration below and run ortho {verb} --config FILE.yaml. The versions of torch, "
            "diffusers and transformers can change numbers.",
            *others,
            Folded("Configuration", text=yaml.safe_dump(made.config, sort_keys=False, allow_unicode=True)),
            Folded("Versions", blocks=[Table(["package", "version"], versions)]),
        ],
    )
