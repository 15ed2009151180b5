"""`ortho export`: write assignments as the reference implementation's folder of noise files. Runs in this process."""

import itertools
import json
import math
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Literal

from torch import Tensor

from ortho_core.errors import RunFailed
from ortho_core.marks import decides, settings
from ortho_core.records.assignments import Assignments, shape_at
from ortho_core.records.plan import Plan
from ortho_core.records.reference_folder import (
    COLUMNS,
    MANIFEST,
    manifest_entry,
    sample_folder,
    write_sample,
)
from ortho_core.storage.local import LocalStore
from rayjobs.assign.reference_config import ExportJob
from rayjobs.verb.console import Progress, say
from rayjobs.verb.models import open_model
from rayjobs.verb.paths import located
from rayjobs.verb.plan import claim

#: Version of the files' layout; increase it when their meaning changes.
LAYOUT = "reference layout 1"
#: Rows whose noise is in memory at once, and threads that write samples (each waits for the disk).
NOISES_AT_ONCE, WRITERS = 64, 8
#: Bytes of part files kept in memory. Rows are read in order, so one part is enough.
PARTS_CACHE_BYTES = 1 << 26

#: Row number, the record's COLUMNS, and ε as (C, H, W).
Row = tuple[int, dict[str, Any], Tensor]


class ExportPlan(Plan):
    """The plan of an export."""

    verb: ClassVar[str] = "export"

    kind: Literal["export"] = "export"
    layout: str = LAYOUT
    #: Fingerprint of the run that made the assignments.
    assignments: str
    rows: int
    #: The noise's shape; of images of several sizes, that of the main size.
    latent_shape: tuple[int, int, int]
    noise_scale: float
    image_root: str | None


def make_plan(job: ExportJob) -> tuple[ExportPlan, Assignments]:
    """The plan, and the assignments. Raises UserError for every error that can be found before the run."""
    assignments = Assignments(job.assignments, PARTS_CACHE_BYTES)
    model = open_model(job.model)
    model = model.at(assignments.plan.framing(model.image_size).main)
    next(batches(assignments, model.latent_shape, 1))
    plan = ExportPlan(
        assignments=assignments.plan.run_fingerprint,
        rows=len(assignments),
        latent_shape=model.latent_shape,
        noise_scale=model.noise_scale if job.noise_scale is None else job.noise_scale,
        **settings(located(job), decides),
    )
    return plan, assignments


def describe(job: ExportJob) -> dict[str, object]:
    """What a dry run prints."""
    plan, _ = make_plan(job)
    sample = 4 * math.prod(plan.latent_shape) + 3000
    return {
        **plan.as_json(),
        "files": 2 * plan.rows + 2,
        "bytes_to_write_about": plan.rows * sample,
        "out": str(job.out),
    }


def run(job: ExportJob) -> int:
    """Export the samples that are not written yet. Returns 0. Raises UserError or RunFailed."""
    plan, assignments = make_plan(job)
    claim(job.out, plan)
    root = LocalStore(job.out)
    if root.exists(MANIFEST):
        say(f"export: {job.out} is complete")
        return 0
    try:
        written = write_all(root, assignments, plan)
    except OSError as error:
        raise RunFailed(f"cannot write to {job.out}: {error.strerror or error}") from error
    say(f"{plan.rows} samples in {job.out}, {written} of them written now; {MANIFEST} lists them")
    return 0


def write_all(root: LocalStore, assignments: Assignments, plan: ExportPlan) -> int:
    """Write every sample, then the manifest. Returns the number of samples that were not there before."""
    progress = Progress(plan.verb, plan.rows, "rows")
    written = 0
    with (
        tempfile.TemporaryFile() as manifest,
        ThreadPoolExecutor(WRITERS) as pool,
    ):

        def write(item: Row) -> bool:
            return write_sample(root, *item, plan.noise_scale)

        for batch in batches(assignments, plan.latent_shape):
            # Two samples with the same folder are written one after the other, so that the second one is refused. Some file
            # systems ignore case, hence `casefold`.
            apart: dict[str, Row] = {}
            again: list[Row] = []
            for item in batch:
                folder = sample_folder(item[1]["sample_id"]).casefold()
                if folder in apart:
                    again.append(item)
                apart.setdefault(folder, item)
            written += sum(pool.map(write, apart.values())) + sum(map(write, again))
            for _, record, _ in batch:
                entry = json.dumps(manifest_entry(root, record, plan.image_root), ensure_ascii=False)
                manifest.write(entry.encode() + b"\n")
            progress.advance(len(batch))
        root.replace_from(MANIFEST, manifest)
    progress.close()
    return written


def batches(
    assignments: Assignments, latent_shape: tuple[int, int, int], at_once: int = NOISES_AT_ONCE
) -> Iterator[list[Row]]:
    """All rows in order, at most `at_once` at a time; `latent_shape` is the noise's shape at the main size of the images.

    Raises UserError if a noise fails its checksum.
    """
    framing = assignments.plan.framing((0, 0))
    image_size = None if framing.is_one_size else framing.main
    for start in range(0, len(assignments), at_once):
        index = range(start, min(start + at_once, len(assignments)))
        records = assignments.rows(index, list(COLUMNS))
        shapes = [shape_at(frame, latent_shape, image_size) for frame in assignments.frames(index)]
        noise: list[Tensor] = []
        for shape, same in itertools.groupby(shapes):
            first = start + len(noise)
            noise += assignments.noise(range(first, first + len(list(same))), shape)
        yield list(zip(index, records, noise, strict=True))
