"""`ortho evaluate`: held-out metrics of one or more models, side by side."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field

from ortho_core.assign import AssignConfig
from ortho_core.assignments import FORMAT, Failure
from ortho_core.decoding import decoded_batches
from ortho_core.errors import RunFailed, UserError
from ortho_core.evaluation import HeldOut, drift, evaluate
from ortho_core.generators.base import check_model_folder, latent_shape_of, load_generator, model_fingerprint
from ortho_core.pairs import PairFields, PairSet
from ortho_core.pictures import load_sheet, save_png
from ortho_core.storage import Location, absolute
from ortho_core.transform import block_dimension
from rayjobs.ledger import claim, fingerprint, replace_text
from rayjobs.progress import say, summary_json
from rayjobs.session import WorkerResources, innermost, ray_session


def _named(value: Any) -> Any:
    """`name=folder,name=folder` or a plain list of folders, as a mapping."""
    if not isinstance(value, str):
        return value
    named = {}
    for item in value.split(","):
        name, equals, folder = item.partition("=")
        named[name if equals else Path(item).name] = folder if equals else item
    if len(named) < len(value.split(",")):
        raise ValueError("two models of the same name; write name=folder,name=folder")
    return named


class EvaluateSettings(WorkerResources):
    """How models are judged; `em` has these under `evaluate.`."""

    rows: int = Field(128, ge=8, description="held-out rows used, from the first")
    steps: int = Field(20, ge=1, description="evaluations of the E-step that looks for each row's closest image")
    batch_size: int = Field(32, ge=1, description="images side by side")
    seed: int = Field(0, ge=0, description="decides the noises")


class EvaluateJob(EvaluateSettings, PairFields):
    """Judge models on held-out pairs. The first model is the one that drift is measured against."""

    model: Annotated[dict[str, Path], BeforeValidator(_named)] = Field(
        description="model folders as FOLDER,FOLDER or NAME=FOLDER,NAME=FOLDER; the first is the base"
    )
    pairs: Location = Field(description="held-out pair set, of any kind that assign reads")
    out: Path = Field(description="folder for evaluation.json and the pictures")
    patch_size: int = Field(2, ge=1, description="patch size of the E-step")


def make_plan(job: EvaluateJob) -> dict[str, Any]:
    if not job.model:
        raise UserError("--model names no model folder")
    for folder in job.model.values():
        check_model_folder(folder)
        block_dimension(latent_shape_of(folder), job.patch_size)
    shapes = {name: latent_shape_of(folder) for name, folder in job.model.items()}
    if len(set(shapes.values())) > 1:
        raise UserError(f"--model: the models make images of different shapes, which cannot be compared: {shapes}")
    pairs = PairSet(job.pairs, job.pair_fields())
    plan = {
        "format": FORMAT,
        "pairs_fingerprint": pairs.fingerprint(),
        "base": next(iter(job.model)),
        "models": {name: model_fingerprint(folder) for name, folder in job.model.items()},
        "config": {k: getattr(job, k) for k in ("rows", "steps", "seed", "patch_size")},
    }
    return {**plan, "run_fingerprint": fingerprint(plan)}


def plan(job: EvaluateJob) -> dict[str, Any]:
    """What a dry run prints."""
    return {**make_plan(job), "evaluations": job.rows * job.steps * len(job.model), "out": str(job.out)}


def run(job: EvaluateJob) -> int:
    """Evaluate every model, write the table. Returns 0."""
    sealed = make_plan(job)
    job = job.model_copy(
        update={
            "model": {name: folder.absolute() for name, folder in job.model.items()},
            "pairs": absolute(job.pairs),
            "image_root": absolute(job.image_root) if job.image_root else None,
            "out": job.out.absolute(),
        }
    )
    claim(job.out, sealed, "evaluate")
    file = job.out / "evaluation.json"
    if not file.is_file():
        with ray_session():
            metrics = judge_all(job)
        replace_text(file, summary_json({"metrics": metrics, "config": job.model_dump(mode="json")}))
    say(table(json.loads(file.read_text())["metrics"]))
    return 0


def judge_all(job: EvaluateJob) -> dict[str, Any]:
    """Every model's metrics: one remote task per model, then each model's drift from the first."""
    import ray

    job.fitting(1)
    gpus = job.gpus()
    remote = ray.remote(num_cpus=job.cpus_per_worker, num_gpus=gpus, max_retries=2, scheduling_strategy="DEFAULT")(
        judge
    )
    (job.out / "pictures").mkdir(exist_ok=True)
    try:
        results = ray.get([remote.remote(job, name, bool(gpus)) for name in job.model])
    except ray.exceptions.RayError as failure:
        raise RunFailed(f"the evaluation failed: {innermost(failure)}") from failure
    for _, _, error in results:
        if error:
            raise RunFailed(error)
    metrics: dict[str, Any] = {}
    base = None
    for name, (values, size, _) in zip(job.model, results, strict=True):
        samples = load_sheet(job.out / "pictures" / f"{name}-samples.png", size)[: values["rows"]]
        metrics[name] = values | ({"drift": drift(samples, base)} if base is not None else {})
        base = samples if base is None else base
    return metrics


def judge(job: EvaluateJob, name: str, cuda: bool) -> tuple[dict[str, Any], tuple[int, int], str]:
    """On a worker: one model's metrics and image size, its pictures written to `pictures/`; or what went wrong."""
    try:
        torch.set_num_threads(max(1, int(job.cpus_per_worker)))
        generator = load_generator(job.model[name], "cuda" if cuda else "cpu")
        heldout = read_heldout(job, generator.image_size)
        config = AssignConfig(patch_size=job.patch_size, steps=job.steps, patience=0)
        done = evaluate(generator, heldout, config, seed=job.seed, batch_size=job.batch_size)
        pictures = {f"{name}-closest": done.closest, f"{name}-samples": done.samples}
        if name == next(iter(job.model)):
            pictures["targets"] = heldout.images.mul(255).round().byte()
        for stem, images in pictures.items():
            save_png(images, job.out / "pictures" / f"{stem}.png")
        return done.metrics, generator.image_size, ""
    except UserError as error:
        return {}, (0, 0), str(error)


def read_heldout(job: EvaluateJob, size: tuple[int, int]) -> HeldOut:
    """The first rows of the held-out set that decode, at the generator's size."""
    pairs = PairSet(job.pairs, job.pair_fields())
    failures: list[Failure] = []
    shard = pairs.shards(job.rows)[0]
    batch = next(decoded_batches(pairs, shard, job.rows, size, failures), None)
    if batch is None:
        raise UserError(f"no row of {job.pairs} can be used; the first: {failures[0].message}")
    rows, images = batch
    return HeldOut([r.sample_id for r in rows], [r.prompt for r in rows], images)


#: Column title, metric, whether lower is better.
COLUMNS = (
    ("latent MSE", "latent_mse", True),
    ("PSNR dB", "psnr", False),
    ("drift", "drift", True),
    ("Fréchet", "frechet", True),
    ("diversity", "diversity", None),
)


def cell(value: Any) -> str:
    if value is None:
        return "0"
    if isinstance(value, dict):
        return f"{value['mean']:.4g} ± {value['standard_error']:.2g}"
    return f"{value:.4g}"


def table(metrics: dict[str, Any]) -> str:
    """The metrics as an aligned text table."""
    rows = [["model", *(title for title, _, _ in COLUMNS)]]
    rows += [[name, *(cell(m.get(key)) for _, key, _ in COLUMNS)] for name, m in metrics.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in rows)


if __name__ == "__main__":
    from rayjobs.cli import main

    sys.exit(main(["evaluate", *sys.argv[1:]]))
