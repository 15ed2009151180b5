"""Folders as `ortho evaluate` and `ortho em` leave them, with real pictures and chosen figures, for the tests of reports."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ortho_core.evaluation.metrics import Estimate
from ortho_core.pictures import save_png
from rayjobs.verb.console import versions

NAMES = ("latent_mse", "psnr", "kid", "reward_clip", "sharpness", "diversity", "drift")
BASE = dict(zip(NAMES[:-1], (0.39, 17.3, 0.053, 0.31, 0.93, 0.125), strict=True))
DIRECT = dict(zip(NAMES, (0.236, 19.5, 0.02, 0.31, 0.41, 0.018, 0.136), strict=True))
FIRST = dict(zip(NAMES, (0.179, 21.3, 0.026, 0.31, 0.88, 0.155, 0.078), strict=True))
SECOND = dict(zip(NAMES, (0.13, 22.8, 0.0257, 0.31, 0.9, 0.168, 0.08), strict=True))
FEATURES = {"name": "tiny-clip", "fingerprint": "0123456789abcdef", "dimension": 128}
MODELS = {"base": BASE, "direct": DIRECT, "cycle_01": FIRST, "cycle_02": SECOND}


def estimates(values, spread=0.05, count=24) -> dict[str, Estimate]:
    """Each value with an interval of `spread` of itself to both sides."""
    return {name: Estimate(v, v * (1 - spread), v * (1 + spread), count) for name, v in values.items()}


def figures(values, spread=0.05, count=24) -> dict[str, dict[str, float]]:
    """The same as JSON has it."""
    return {name: asdict(estimate) for name, estimate in estimates(values, spread, count).items()}


def make_evaluation(folder: Path, models=MODELS, rows=24, quarantined=0, size=(32, 32), spread=0.05) -> dict:
    (folder / "pictures").mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for stem in ["targets", *(f"{name}-{kind}" for name in models for kind in ("closest", "samples", "others"))]:
        pictures = torch.randint(0, 256, (min(rows, 64), 3, *size), dtype=torch.uint8, generator=generator)
        save_png(pictures, folder / "pictures" / f"{stem}.png")
    prompts = [f"a <b>red</b> digit, number {i}" for i in range(rows)]
    names = [name for name in models for _ in prompts]
    ids = [f"{i:06d}" for i in range(rows)] * len(models)
    images = [f"images/{i:04d}.png" for i in range(rows)] * len(models)
    table = pa.table({"model": names, "sample_id": ids, "prompt": prompts * len(models), "image": images})
    pq.write_table(table, folder / "evaluation.parquet")
    content = {
        "base": next(iter(models)),
        "rows": rows,
        "quarantined": quarantined,
        "metrics": {name: figures(values, spread) for name, values in models.items()},
        "features": {**FEATURES, "cmmd": FEATURES},
        "rewards": {"clip": "fedcba9876543210"},
        "image_size": list(size),
        "evaluations_per_image": 8,
        "config": {"pairs": "pairs/heldout.jsonl", "workers": "1", "cpus_per_worker": 1.0},
        "versions": versions(),
    }
    (folder / "evaluation.json").write_text(json.dumps(content))
    return content


def make_em(work_dir: Path, assignments: Path, cycles=2, evaluated=True, validated=True) -> None:
    """A finished run whose E-steps are all those of `assignments`, a real folder of `ortho assign`."""
    names = [f"cycle_{k:02d}" for k in range(1, cycles + 1)]
    entries = []
    for k, name in enumerate(names, start=1):
        shutil.copytree(assignments, work_dir / name / "assignments")
        summary = json.loads((assignments / "summary.json").read_text())
        entries.append({"cycle": k, "assign": summary, "train": make_training(work_dir / name / "train", validated)})
    evaluation = None
    if evaluated:
        make_training(work_dir / "direct" / "train", validated)
        models = {name: values for name, values in MODELS.items() if name in ("base", "direct", *names)}
        evaluation = make_evaluation(work_dir / "evaluation", models)["metrics"]
    settings = {
        "assign": {"workers": "1:2", "cpus_per_worker": 1.0},
        "train": {"num_workers": 2, "cpus_per_worker": 0.5},
    }
    summary = {
        "model": str(work_dir / names[-1] / "train" / "checkpoint-final"),
        "cycles": entries,
        "evaluation": evaluation,
        "seconds_this_run": 157.0,
        "config": {"pairs": "pairs", "model": "models/tiny-turbo", **settings},
        "versions": versions(),
    }
    (work_dir / "em_summary.json").write_text(json.dumps(summary))


def make_training(folder: Path, validated: bool) -> dict:
    folder.mkdir(parents=True)
    terms = {"pixel": 0.0, "preserve_pixel": 0.0, "grad_norm": 1.0, "lr": 1e-4}
    log = [
        {"update": k, "group": "train", "loss": 1 / k, "latent": 1 / k, "preserve_latent": k / 100, **terms}
        for k in range(1, 61)
    ]
    held = [{"update": u, "latent": 0.5 - u / 200, "drift": u / 100} for u in (0, 30, 60)] if validated else []
    lines = [*log, *({"group": "validation", **entry} for entry in held)]
    (folder / "train_history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {
        "rows": 24,
        "epochs": [{"loss": 0.5}, {"loss": 0.1}],
        "best_epoch": 2,
        "best_loss": 0.1,
        "final_loss": 0.1,
        "validations": held,
        "skipped_updates": [],
        "tracker_failures": [],
        "images_per_second": 75.0,
        "updates": 60,
        "seconds_this_run": 48.4,
        "run_fingerprint": "0123456789abcdef",
    }
    (folder / "train_summary.json").write_text(json.dumps(summary))
    return summary
