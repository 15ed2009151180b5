"""`ortho import`: read the reference implementation's folder of noise files as assignments. Runs in this process."""

import math

from ortho_core.errors import BadRow, UserError
from ortho_core.marks import decides, settings
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Failure, PairFields, Shard
from ortho_core.records.assignments import noise_checksum
from ortho_core.records.parts import ShardResult
from ortho_core.records.plan import ImportedPlan, NoiseSettings
from ortho_core.records.reference_folder import (
    MANIFEST,
    Sample,
    SampleReader,
    manifest_lines,
    parse_entry,
)
from ortho_core.storage.local import LocalStore
from ortho_core.storage.store import OutsideRoot
from rayjobs.assign.reference_config import ImportJob
from rayjobs.pool.run import ShardedRun
from rayjobs.reports.next_steps import beside, left_out, next_command, settled_rows
from rayjobs.verb.console import Progress, say
from rayjobs.verb.models import open_model
from rayjobs.verb.pairs import open_pairs
from rayjobs.verb.paths import located

#: Names of a manifest's fields. The reference's manifest has other names too, which `parse_entry` handles.
MANIFEST_NAMES = {"prompt_field": "prompt", "image_field": "image"}
#: Rows of a part file.
ROWS_PER_SHARD = 1024

#: Counts that an import leaves out of its summary: no model reads the prompts, and nothing is searched.
UNKNOWN = ("truncated_prompts", "candidate_forwards")


def make_plan(job: ImportJob) -> tuple[ImportedPlan, PairSet, PairSet]:
    """The plan, the manifest, and the pair set with the images. Raises UserError for every error found before the run."""
    model = open_model(job.model)
    if not (job.samples / MANIFEST).is_file():
        raise UserError(f"--samples {job.samples}: no {MANIFEST} in it (expected: a folder as `ortho export` makes)")
    manifest = PairSet(job.samples / MANIFEST, PairFields(**MANIFEST_NAMES))
    pairs = (
        open_pairs(job.pairs, job.pair_fields())
        if job.pairs
        else PairSet(manifest.location, job.pair_fields().model_copy(update=MANIFEST_NAMES))
    )
    plan = ImportedPlan(
        samples_fingerprint=manifest.fingerprint(),
        pairs_fingerprint=pairs.fingerprint(),
        model_fingerprint=model.fingerprint,
        latent_shape=model.latent_shape,
        **settings(job, decides),
        model_noise_scale=model.noise_scale if job.noise_scale is None else None,
        # The folder holds the noise itself, without the settings of the search that found it.
        noise=NoiseSettings(
            seed=None, transform="free", patch_size=1, regions=1, store="parameters", store_latents=False
        ),
        rows=manifest.rows(),
        rows_per_shard=ROWS_PER_SHARD,
        shards=-(-manifest.rows() // ROWS_PER_SHARD),
    )
    return plan, manifest, pairs


def describe(job: ImportJob) -> dict[str, object]:
    """What a dry run prints."""
    plan, _, pairs = make_plan(job)
    record = 200 + 4 * math.prod(plan.latent_shape)
    return {
        **plan.as_json(),
        "recognised": pairs.record(),
        "images_in": pairs.location,
        "bytes_to_write_about": plan.rows * record,
        "out": job.out,
    }


def run(job: ImportJob) -> int:
    """Import the rows not imported yet. Returns 0, or 3 if rows were quarantined. Raises UserError or RunFailed."""
    job = located(job)
    plan, manifest, pairs = make_plan(job)
    begun = ShardedRun(job.out, plan, verify=job.verify)
    if begun.is_complete():
        return begun.exit_code
    import_shards(job, begun, manifest, pairs)
    counts = begun.finish()
    # `ortho train` opens the images with these options.
    recorded = job.model_copy(update={"pairs": pairs.location, **pairs.fields.model_dump()})
    code = begun.conclude(begun.summary(recorded, unknown=UNKNOWN, recognised=pairs.record()), "rows could be imported")
    say(f"{counts.assigned} of {counts.rows} rows in {job.out}")
    return code


def import_shards(job: ImportJob, begun: ShardedRun[ImportedPlan], manifest: PairSet, pairs: PairSet) -> None:
    """Import the shards that are not imported yet."""
    plan, quarantined = begun.plan, begun.survey.quarantined
    reader = SampleReader(LocalStore(job.samples), plan.latent_shape, plan.model_noise_scale or 1.0, job.noise_scale)
    copies = job.pairs is None and job.image_root is None
    progress = Progress(plan.verb, plan.rows, "rows", done=begun.survey.rows)
    shards = manifest.shards(plan.rows_per_shard)
    for task in begun.survey.todo:
        shard = shards[task.shard]
        result = import_shard(reader, pairs, shard, copies)
        begun.ledger.commit(task, result)
        quarantined += len(result.failures)
        progress.advance(shard.rows, f"{quarantined} quarantined" if quarantined else "")
    progress.close()


def import_shard(reader: SampleReader, pairs: PairSet, shard: Shard, copies: bool) -> ShardResult:
    """The records of one shard of the manifest; a row that cannot be used becomes a failure."""
    result = ShardResult()
    for row, line in manifest_lines(reader.root, shard):
        name = f"{row:06d}"
        try:
            entry, name = parse_entry(line, row)
            sample = reader.read(entry, name, row, copies=copies)
            image = image_of(reader, pairs, sample, row, copies)
        except BadRow as bad:
            result.failures.append(Failure(name, row, bad.reason, str(bad)))
            continue
        result.rows.append(
            {
                **sample.columns,
                "image": image,
                "regions": 0,
                "skew": None,
                "noise": sample.noise.flatten().numpy(),
                "noise_checksum": float(noise_checksum(sample.noise[None])[0]),
                "target_latent": None,
            }
        )
        result.evaluations += sample.columns["evaluations"] or 0
    return result


def image_of(reader: SampleReader, pairs: PairSet, sample: Sample, row: int, copies: bool) -> str:
    """The sample's image, as `pairs` names it, after a check that it can be read: training ends at a missing image.

    Raises BadRow.
    """
    row_label = f"row {row}"
    if not copies:
        pairs.fetch_image(sample.images[0], row_label)
        return sample.images[0]
    trouble: BadRow | None = None
    for image in sample.images:
        try:
            inside = reader.inside(image)
            pairs.fetch_image(inside, row_label)
            return inside
        except BadRow as bad:
            trouble = trouble or bad
        except (OutsideRoot, OSError) as error:
            reason = "outside-root" if isinstance(error, OutsideRoot) else "missing-image"
            trouble = trouble or BadRow(reason, f"{row_label}: image {image[:200]!r} is not in {reader.root.location}")
    assert trouble is not None
    raise BadRow(trouble.reason, f"{trouble}; --pairs names the pair set that has the images")


def ending(job: ImportJob, code: int) -> list[str]:
    """The last lines of the command."""
    _, quarantined = settled_rows(job.out)
    return [
        *left_out(job.out, code, quarantined),
        next_command("train", model=job.model, assignments=job.out, out=beside(job.out, "trained")),
    ]
