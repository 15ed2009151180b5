"""Seconds of the command `ortho look`, from start to end: `python -m benchmarks.look --out runs/look-times.json`.

The sets: rows of JSON over the example digits, a folder of small images with caption files, and photographs of a megapixel.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.assign_scale import repeated_pairs
from benchmarks.results import write_results

#: Number of different photographs; the others are copies.
DIFFERENT = 50


def captioned_files(folder: Path, files: int) -> Path:
    """`files` files in one folder: images of 32×32 pixels, each with its caption file."""
    folder.mkdir(parents=True)
    image = Path("examples/digits/images/0000.png").read_bytes()
    for i in range(files // 2):
        (folder / f"{i:06d}.png").write_bytes(image)
        (folder / f"{i:06d}.txt").write_text(f"a handwritten digit, number {i}")
    return folder


def photographs(folder: Path, count: int) -> Path:
    """JPEG files of 1152×896 pixels with the contrast and the size (about 0.3 MB) of photographs."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(min(count, DIFFERENT)):
        coarse = Image.fromarray(random.integers(0, 256, (14, 18, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((1152, 896), Image.Resampling.BICUBIC), np.int16)
        grain = random.normal(0, 8, (896, 1152, 1)).astype(np.int16)
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(folder / f"{i:06d}.jpg", quality=85)
    for i in range(DIFFERENT, count):
        shutil.copy(folder / f"{i % DIFFERENT:06d}.jpg", folder / f"{i:06d}.jpg")
    return folder


def seconds(pairs: Path, *options: str) -> dict[str, float]:
    """Clock time and processor time of the command."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "rayjobs", "look", str(pairs), "--out", out, *options]
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        whole, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        summary = json.loads((Path(out) / "summary.json").read_text())
        size = (Path(out) / "report.html").stat().st_size
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    figures = {"seconds": whole, "cpu_seconds": cpu, "report_megabytes": size / 1e6}
    rounded = {name: round(value, 2) for name, value in figures.items()}
    return {"rows": summary["rows"], "looked_at": summary["looked_at"], **rounded}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of JSON")
    parser.add_argument("--files", type=int, default=100_000, help="files in the folder")
    parser.add_argument("--photographs", type=int, default=1_000, help="photographs; all of them are read")
    parser.add_argument("--out", type=Path, default=None, help="file for the figures, as JSON")
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sets = {
            "rows of JSON": (repeated_pairs(folder / "json", options.rows),),
            "files in a folder": (captioned_files(folder / "files", options.files),),
            "photographs": (photographs(folder / "photographs", options.photographs), "--prompt", "a photograph"),
        }
        for name, (pairs, *more) in sets.items():
            results[name] = seconds(pairs, *more)
            print(f"{name:20}", *(f"{key} {value}" for key, value in results[name].items()), sep="  ", flush=True)
    write_results(results, options.out)


if __name__ == "__main__":
    main()
