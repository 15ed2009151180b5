"""Parts that the jobs' reports share: how it was made, what became of the rows, the Gaussian check, what it cost.

Each function returns a section or a block of `ortho_core.report.page`, from files that a job left. `models` has the parts
about models that were judged.
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

#: Quarantined rows that are listed one by one.
FIRST_FAILURES = 8


@dataclass(frozen=True)
class Accounted:
    """What became of the rows of one step: rows = used + quarantined."""

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
    """Every row accounted for, and the first of the quarantined ones, from `failures.jsonl` in `folder`."""
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
        "Every row that went in came out as a result or is in quarantine with its reason: rows = used + quarantined.",
        Table(["step", "rows", "used", "quarantined", "reasons"], lines),
    ]
    failures = first_failures(folder) if folder is not None else []
    if failures:
        total = max(s.quarantined for s in steps)
        words = [[row_name(f.image, f.sample_id), str(f.row), f.reason, f.message] for f in failures]
        which = "The quarantined rows" if total <= len(failures) else f"The first of {total:,} quarantined rows"
        blocks += [
            f"{which}, as failures.jsonl has them:",
            Table(["image, or file of the row", "row", "reason", "what"], words, text=True),
        ]
    return Section("Rows", blocks)


def quarantine_reasons(folder: Store) -> dict[str, int]:
    """How often each reason stands in `failures.jsonl`."""
    with folder.open("failures.jsonl") as stream:
        return dict(sorted(Counter(failure_of(line, folder).reason for line in stream).items()))


def first_failures(folder: Store) -> list[Failure]:
    """The first lines of `failures.jsonl`; none if there is no such file."""
    try:
        with folder.open("failures.jsonl") as stream:
            lines = [stream.readline() for _ in range(FIRST_FAILURES)]
    except FileNotFoundError:
        return []
    return [failure_of(line, folder) for line in lines if line.strip()]


def failure_of(line: bytes, folder: Store) -> Failure:
    """A quarantined row, from its line of `failures.jsonl`. Raises UserError for a line of something else."""
    where = f"{folder.location}/failures.jsonl"
    return needed(_failure, line, where, remedy="delete it, and the same command makes it again")


def _failure(line: bytes, where: str) -> Failure:
    try:
        return TypeAdapter(Failure).validate_python(json_object(line, where))
    except ValidationError as error:
        raise NotParsedError(where, "is damaged", first_fault(error)) from error


def gaussian_check(folder: Store, when: str) -> GaussianCheck:
    """The statistics of the noise `init` or `final`. Raises UserError for a file of something else."""
    name = f"orthogonal_gaussian_{when}.json"
    return GaussianCheck.parse(folder.read(name), f"{folder.location}/{name}")


def gaussian_section(folder: Store, of_what: str) -> Section:
    """The assigned noise against N(0, I), from `orthogonal_gaussian_{init,final}.{json,png}` in `folder`."""
    base, final = (gaussian_check(folder, when) for when in ("init", "final"))
    far = [[name, f"{base.departures[name]:.1f}", f"{value:.1f}"] for name, value in final.departures.items()]
    table = Table(
        [Cell("distance from N(0, I)", "in null standard deviations"), "base noise", "assigned noise"],
        far,
        [
            ("KS", "in 95 % quantiles instead"),
            ("of a patch entry", "the largest of all entries; its own null is 2 to 4"),
        ],
    )
    plots = [folder.read(f"orthogonal_gaussian_{when}.png") for when in ("final", "init")]
    before = Figure.plot_of(plots[1], "The base noise against theory.", least=900)
    return Section(
        "Is the noise still Gaussian?",
        [
            f"{final.verdict[:1].upper()}{final.verdict[1:]}.",
            "A fixed rotation leaves N(0, I) as it is. A rotation chosen for its image keeps every patch's norm, not "
            f"independence. Over {of_what}: KS distance of the entries to N(0, 1) {final.marginal.ks:.4f} (true samples "
            f"stay under {final.marginal.null_95:.4f} in 95 % of cases){spectrum(final)}.",
            Figure.plot_of(plots[0], "The assigned noise against theory.", least=900),
            Folded("Each statistic, and the base noise of the same images", blocks=[table, before]),
        ],
    )


def spectrum(check: GaussianCheck) -> str:
    """The range of the covariance's eigenvalues, where there are enough patches for one to be expected."""
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
    """What one step of a run did, and on how many workers. `rate` is in words, such as `75 images/s`."""

    name: str
    work: str
    seconds: float | None
    rate: str
    workers: int
    cpus_each: float
    gpus_each: float | None

    @staticmethod
    def on(settings: Settings, name: str, work: str, seconds: float | None, rate: str) -> "Phase":
        """With the workers that the configuration of `assign`, `train`, `reward` or `evaluate` asks for."""
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
        ("time", "of the start that finished the step; after a resume it is not all of it"),
        (
            hours,
            "time × the workers that were asked for: fewer may have run where the cluster had no room, and GPUs count where "
            "--gpus-per-worker names them",
        ),
    ]
    return Table(["step", "work", "time", "rate", "workers", hours], [p.cells() for p in phases], legend)


def provenance(verb: str, made: Made, others: Sequence[Block] = ()) -> Section:
    """Versions and configuration, from the summary of any job; `others` come before the configuration."""
    versions = [[name, version] for name, version in made.versions.items()]
    return Section(
        "How it was made",
        [
            f"To repeat it, save the configuration below and run ortho {verb} --config FILE.yaml. Of the versions, those of "
            "torch, diffusers and transformers decide numbers.",
            *others,
            Folded("Configuration", text=yaml.safe_dump(made.config, sort_keys=False, allow_unicode=True)),
            Folded("Versions", blocks=[Table(["what", "version"], versions)]),
        ],
    )
