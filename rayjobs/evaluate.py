"""`ortho evaluate`: held-out metrics of one or more models, side by side.

A pool of workers goes through the held-out rows once for each model; what comes of a shard is one part file. The figures are
made from these: `evaluation.json` and `.parquet`, the contact sheets in `pictures/`, and the table that is printed.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from ortho_core.decoding import usable_rows
from ortho_core.errors import UserError
from ortho_core.evaluation.features import TINY_CLIP, find_features
from ortho_core.evaluation.rows import SPREAD_PROMPTS
from ortho_core.generators.base import check_model_folder, image_size_of, latent_shape_of, model_fingerprint
from ortho_core.pairs import PairFields, PairSet, Shard
from ortho_core.rewards.names import fingerprint_of, parse_rewards, reward_fingerprints
from ortho_core.storage import Location, absolute, open_store
from ortho_core.transform import block_dimension
from rayjobs.assign import PoolResources, labels, span, work_through
from rayjobs.evaluate_figures import Parts, check_judged, draw, judge_all, table_of, write_failures
from rayjobs.evaluate_report import write_report
from rayjobs.evaluate_worker import PARTS, EvaluateActor, EvaluateLedger, judge_models
from rayjobs.ledger import Ledger, claim, replace_text
from rayjobs.progress import say, summary_json


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


class EvaluateSettings(PoolResources):
    """How models are judged; `em` has these under `evaluate.`."""

    rows: int = Field(128, ge=8, description="held-out rows used, from the first")
    steps: int = Field(20, ge=1, description="evaluations of the E-step that looks for each row's closest image")
    batch_size: int = Field(32, ge=1, description="images side by side in that E-step")
    seed: int = Field(0, ge=0, description="decides the noises and the resamples")
    rows_per_shard: int = Field(128, ge=1, description="rows of one task and part file, what a lost worker repeats")
    workers: Annotated[str, BeforeValidator(span)] = Field(
        "2",
        description="actors in the pool, N or LEAST:MOST; each holds one model at a time and all judges (0: judge in this "
        "process, for a debugger)",
    )
    features: str = Field(
        "tiny-clip",
        description="what FID, KID, precision and recall see: tiny-clip, inception, or a vision model's folder",
    )
    cmmd_features: str = Field("tiny-clip", description="what CMMD sees: tiny-clip, or a CLIP model's folder")
    rewards: str | None = Field("clip", description="rewards of the images at random noise: NAME,NAME")
    rewards_root: Location = Field("models", description="folder that the folders of rewards and of inception are in")
    reward_folders: Annotated[dict[str, Location] | None, BeforeValidator(labels)] = Field(
        None, description="folders of single rewards that are elsewhere: NAME=FOLDER (clip: models/tiny-clip)"
    )
    lpips: Location | None = Field(
        None, description="torchvision's weights of AlexNet, VGG16 or SqueezeNet 1.1, or their folder, for LPIPS"
    )


class EvaluateJob(EvaluateSettings, PairFields):
    """Judge models on held-out pairs. The first model is the one that drift is measured against."""

    model: Annotated[dict[str, Path], BeforeValidator(_named)] = Field(
        description="model folders as FOLDER,FOLDER or NAME=FOLDER,NAME=FOLDER; the first is the base"
    )
    pairs: Location = Field(description="held-out pair set, of any kind that assign reads")
    out: Path = Field(description="folder for the figures and pictures; the same command again resumes")
    patch_size: int = Field(2, ge=1, description="patch size of the E-step")
    base_from: Path | None = Field(
        None,
        description="finished evaluation by the same settings, whose figures of the same base model are taken over",
    )
    warm_start: ClassVar[None] = None
    candidate_forwards: ClassVar[int] = 0

    @property
    def slots(self) -> int:
        return self.batch_size

    def folders(self) -> dict[str, Path]:
        """Where the rewards' weights are. `clip` is tiny-clip, except where `aesthetic` needs the large one."""
        tiny = {} if "aesthetic" in self.reward_names() else {"clip": TINY_CLIP}
        given = {name: Path(folder) for name, folder in (self.reward_folders or {}).items()}
        return {"": Path(self.rewards_root), **tiny, **given}

    def reward_names(self) -> list[str]:
        """Raises UserError for a name that is none."""
        return list(parse_rewards(self.rewards)) if self.rewards is not None else []


def check(job: EvaluateJob) -> None:
    """Raises UserError for what is wrong with the options and the models."""
    if not job.model:
        raise UserError("--model names no model folder")
    for name, folder in job.model.items():
        if not name or "/" in name:
            raise UserError(f"--model: {name!r} is not accepted as a name; it becomes the name of a picture")
        check_model_folder(folder)
        block_dimension(latent_shape_of(folder), job.patch_size)
    shapes = {name: (latent_shape_of(folder), image_size_of(folder)) for name, folder in job.model.items()}
    if len(set(shapes.values())) > 1:
        raise UserError(f"--model: the models make images of different shapes, which cannot be compared: {shapes}")
    if job.rewards is not None and ":" in job.rewards:
        raise UserError(f"--rewards {job.rewards}: each is a figure of its own and has no weight; accepted: NAME,NAME")
    if job.reward_folders is not None and (unused := sorted(job.reward_folders.keys() - _used(job))):
        raise UserError(f"--reward-folders: {unused[0]} is not among --rewards {job.rewards}")
    if find_features(job.cmmd_features, Path(job.rewards_root), "--cmmd-features").kind != "clip":
        raise UserError(
            f"--cmmd-features {job.cmmd_features}: CMMD is made of CLIP embeddings; give a CLIP model's folder"
        )


def _used(job: EvaluateJob) -> set[str]:
    names = {*job.reward_names(), *(job.rewards or "").split(",")}
    return names | ({"clip"} if "aesthetic" in names else set())


def make_plan(job: EvaluateJob) -> tuple[dict[str, Any], PairSet, list[Shard]]:
    """What the run will do, and its tasks. Raises UserError for whatever can be found wrong beforehand."""
    check(job)
    models = judge_models(job)
    rewards = reward_fingerprints(job.reward_names(), job.folders())
    pairs = PairSet(job.pairs, job.pair_fields())
    shards = heldout_shards(pairs, job.rows, job.rows_per_shard)
    rows = sum(shard.rows for shard in shards)
    cmmd = models.cmmd or models.features
    plan = {
        "pairs_fingerprint": pairs.fingerprint(),
        "base": next(iter(job.model)),
        "models": {name: model_fingerprint(folder) for name, folder in job.model.items()},
        "features": {"name": models.features.name, "fingerprint": models.features.fingerprint},
        "cmmd_features": {"name": cmmd.name, "fingerprint": cmmd.fingerprint},
        "rewards": rewards,
        "lpips": fingerprint_of([models.lpips]) if models.lpips is not None else None,
        "config": {k: getattr(job, k) for k in ("steps", "seed", "patch_size")},
        "diversity_prompts": first_prompts(pairs, shards),
        "heldout_rows": rows,
        "rows": rows * len(job.model),
        "rows_per_shard": job.rows_per_shard,
        "shards": len(shards) * len(job.model),
    }
    tasks = [replace(shard, index=m * len(shards) + shard.index) for m in range(len(job.model)) for shard in shards]
    return Ledger.seal(plan), pairs, tasks


def heldout_shards(pairs: PairSet, rows: int, rows_per_shard: int) -> list[Shard]:
    """The first `rows` rows, in shards."""
    shards = [shard for shard in pairs.shards(rows_per_shard) if shard.first < rows]
    return [replace(shard, rows=min(shard.rows, rows - shard.first)) for shard in shards]


def first_prompts(pairs: PairSet, shards: list[Shard]) -> list[str]:
    """The first prompts of the rows that differ."""
    found: dict[str, None] = {}
    for shard in shards:
        for pair in usable_rows(pairs, shard, []):
            found[pair.prompt] = None
            if len(found) == SPREAD_PROMPTS:
                return list(found)
    return list(found)


def plan(job: EvaluateJob) -> dict[str, Any]:
    """What a dry run prints."""
    content, _, _ = make_plan(job)
    Y, X = image_size_of(next(iter(job.model.values())))
    return {
        **content,
        "evaluations": content["rows"] * job.steps,
        # Two PNGs a row, the targets once; photographs take about two bytes a pixel.
        "bytes_to_write_at_most_about": (2 * content["rows"] + content["heldout_rows"]) * (3 * Y * X + 8192),
        "writes": ["evaluation.json", "evaluation.parquet", "failures.jsonl", "pictures/", f"{PARTS}/"],
        "out": str(job.out),
    }


def located(job: EvaluateJob) -> EvaluateJob:
    """The job with every local path absolute, for workers that stand elsewhere."""
    places: dict[str, Any] = {
        "model": {name: folder.absolute() for name, folder in job.model.items()},
        "pairs": absolute(job.pairs),
        "image_root": absolute(job.image_root) if job.image_root else None,
        "out": job.out.absolute(),
        "rewards_root": absolute(job.rewards_root),
        "lpips": absolute(job.lpips) if job.lpips else None,
    }
    if job.reward_folders:
        places["reward_folders"] = {name: absolute(folder) for name, folder in job.reward_folders.items()}
    for option in ("features", "cmmd_features"):
        if getattr(job, option) not in ("tiny-clip", "inception"):
            places[option] = absolute(getattr(job, option))
    return job.model_copy(update=places)


def run(job: EvaluateJob) -> int:
    """Judge every model, write figures and pictures. Returns 0, or 3 if rows were quarantined."""
    sealed, pairs, tasks = make_plan(job)
    here = located(job)
    folder = claim(here.out, sealed, "evaluate")
    ledger = EvaluateLedger(folder.child(PARTS), sealed)
    if job.base_from is not None:
        ledger.take_base_from(job.base_from)
    todo, rows, quarantined = ledger.survey()
    started, seconds = time.monotonic(), None
    if todo:
        with here.session():
            work = [(task, tasks[task.shard]) for task in todo]
            work_through(here, ledger, pairs, work, rows, quarantined, EvaluateActor, "evaluate")
        seconds = round(time.monotonic() - started, 2)
    if todo or not folder.exists("evaluation.json"):
        conclude(here, ledger, seconds)
    result = json.loads(folder.read("evaluation.json"))
    say(table_of(result["metrics"]))
    return 3 if result["quarantined"] else 0


def conclude(job: EvaluateJob, ledger: Ledger, seconds: float | None = None) -> None:
    """Reconcile the rows, make the figures, the table, the pictures and the report. `seconds` of judging, in this run."""
    sealed, out = ledger.plan, open_store(job.out)
    parts = Parts(ledger)
    quarantined = write_failures(parts, out)
    check_judged(parts, sealed["heldout_rows"], quarantined)
    own_cmmd = sealed["features"]["fingerprint"] != sealed["cmmd_features"]["fingerprint"]
    metrics = judge_all(parts, out, job.seed, own_cmmd)
    draw(parts, job.out / "pictures")
    ledger.folder.sweep("part-")
    D = parts.matrix(sealed["base"], "features").shape[1]
    cmmd = parts.matrix(sealed["base"], "cmmd_features").shape[1] if own_cmmd else D
    content = {
        "base": sealed["base"],
        "rows": parts.count,
        "quarantined": quarantined,
        "metrics": metrics,
        "features": {
            **sealed["features"],
            "dimension": D,
            "cmmd": {**sealed["cmmd_features"], "dimension": cmmd},
        },
        "rewards": sealed["rewards"],
        "image_size": list(image_size_of(job.model[sealed["base"]])),
        "evaluations_per_image": job.steps,
        "seconds_this_run": seconds,
        "config": job.model_dump(mode="json"),
    }
    replace_text(job.out / "evaluation.json", summary_json(content))
    write_report(job.out)


if __name__ == "__main__":
    from rayjobs.cli import main

    sys.exit(main(["evaluate", *sys.argv[1:]]))
