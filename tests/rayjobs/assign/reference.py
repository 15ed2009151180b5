"""Folders in the reference's layout, and the two verbs that write and read them."""

import json
import shutil
from pathlib import Path

import torch

from ortho_core.noise.seeded import seeded_normal
from rayjobs.cli import main

SHAPE = (4, 8, 8)
SCALE = 14.61464


def export(assigned, model, out, *more):
    return main(["export", "--assignments", str(assigned[1]), "--model", str(model), "--out", str(out), *more])


def take(samples, model, out, *more):
    return main(["import", "--samples", str(samples), "--model", str(model), "--out", str(out), *map(str, more)])


def reference_folder(folder, digits, rows=6, extra=(), **fields):
    """Rows with the least that the reference always writes: ids, prompts, noise and a copy of the image."""
    lines = []
    for i in range(rows):
        name = f"{i:06d}_x"
        (folder / "samples" / name).mkdir(parents=True)
        torch.save(SCALE * seeded_normal([i], SHAPE), folder / "samples" / name / "best_input_noise.pt")
        shutil.copy(digits / "images" / f"{i:04d}.png", folder / "samples" / name / "x.png")
        entry = {"sample_id": name, "prompt": f"prompt {i}", "target_image_path": f"{folder}/samples/{name}/x.png"}
        lines.append(entry | fields)
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *extra]))
    return folder


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(f.relative_to(folder)): (f.stat().st_size, f.stat().st_mtime_ns) for f in folder.rglob("*") if f.is_file()
    }
