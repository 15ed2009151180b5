"""The figures and pictures of the tutorial: `python -m benchmarks.tutorial --out docs/results/figures/tutorial.json`.

Runs the commands that the page shows, in an empty folder, and writes every figure that the page quotes. `--pictures docs/images`
also replaces the pictures of the page. The seconds are those of this machine: measure where nothing else runs.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.results import ROOT, write_results

PAGE = ROOT / "docs" / "start" / "tutorial.md"
#: The committed figures of the page.
FIGURES = ROOT / "docs" / "results" / "figures" / "tutorial.json"
#: Commands that the page quotes figures of. The last one is left to the reader.
STEPS = ("train-gan", "invert", "em", "generate")
#: Where in `runs/tutorial` each picture of the page is.
PICTURES = {
    "tutorial-generator.png": "generator/samples/epoch-016.png",
    "tutorial-six.png": "six/comparison.png",
    "tutorial-comparison.png": "em/comparison.png",
    "tutorial-sixes.png": "sixes/grid.png",
    "tutorial-sixes-base.png": "sixes-base/grid.png",
    "tutorial-sixes-direct.png": "sixes-direct/grid.png",
}
#: The rows of the page's table: title, metric, digits after the point.
ROWS = (("KID ↓", "kid", 1), ("diversity", "diversity", 3), ("latent MSE ↓", "latent_mse", 3), ("drift ↓", "drift", 3))


def blocks(page: str) -> list[str]:
    """What the page has between fences: commands, and what they print."""
    return [block.strip() for block in re.findall(r"^ *```\n(.*?)^ *```$", page, re.DOTALL | re.MULTILINE)]


def commands(page: str) -> list[str]:
    return [block for block in blocks(page) if block.startswith("ortho ")]


def outputs(page: str) -> list[str]:
    """Lines that the page says the commands print."""
    return [block for block in blocks(page) if not block.startswith("ortho ")]


def rows(evaluation: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """The rows of the page's table, of an evaluation of the base model and those after it, as Markdown."""
    return [
        f"| {title} | {' | '.join(_cell(model.get(metric), digits) for model in evaluation.values())} |"
        for title, metric, digits in ROWS
    ]


def _cell(estimate: Mapping[str, float] | None, digits: int) -> str:
    if estimate is None:
        return "0"
    value, low, high = (f"{estimate[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def run(folder: Path) -> dict[str, Any]:
    """The figures of the page's commands, run in a folder, which they fill."""
    (folder / "examples").symlink_to(ROOT / "examples")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    seconds, printed = {}, ""
    texts = commands(PAGE.read_text())
    for name in STEPS:
        command = next(text for text in texts if text.split()[1] == name)
        began = time.perf_counter()
        printed += _printed_by(command, folder, environment)
        seconds[name] = round(time.perf_counter() - began, 1)
    sixes = next(text for text in texts if text.split()[1] == "generate")
    for model, out in (
        ("generator/checkpoint-final", "sixes-base"),
        ("em/direct/train/checkpoint-final", "sixes-direct"),
    ):
        other = sixes.replace("em/cycle_04/train/checkpoint-final", model).replace("tutorial/sixes", f"tutorial/{out}")
        _printed_by(other, folder, environment)
    printed = printed.replace(str(folder), "...")
    summary = json.loads((folder / "runs/tutorial/em/em_summary.json").read_text())
    lines = [found for output in outputs(PAGE.read_text()) if (found := _same_but_for_numbers(output, printed))]
    return {"seconds": seconds, "printed": lines, "evaluation": summary["evaluation"]}


def _printed_by(command: str, folder: Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{command}:\n{done.stderr[-2000:]}")
    return done.stdout + done.stderr


def _same_but_for_numbers(line: str, printed: str) -> str | None:
    """What was printed in place of a line of the page."""
    number = r"\d+(?:\.\d+)?"
    found = re.search(number.join(map(re.escape, re.split(number, line))), printed)
    return found[0] if found else None


def small_copy(picture: Path, copy: Path) -> None:
    """Write a PNG with 128 colours, which is smaller than one in RGB."""
    with Image.open(picture) as opened:
        opened.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(copy, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    parser.add_argument("--pictures", type=Path, help="folder whose pictures of the page are replaced")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        figures = run(folder)
        for picture, made in PICTURES.items() if options.pictures is not None else ():
            small_copy(folder / "runs" / "tutorial" / made, options.pictures / picture)
    print("\n".join([*figures["printed"], *rows(figures["evaluation"])]))
    write_results(figures, options.out)


if __name__ == "__main__":
    main()
