"""The results file of a benchmark: its figures, and the conditions under which they were measured."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def write_results(results: Mapping[str, Any], out: Path | None) -> None:
    """Print the conditions. With a file, make its folder and write the conditions and the results into it as JSON."""
    measured = conditions()
    print("measured: " + ", ".join(f"{name} {value}" for name, value in measured.items()))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"measured": measured, **results}, indent=1) + "\n")


def conditions() -> dict[str, str]:
    """Command, commit, date and machine. The load is the mean number of busy cores in the last minute, with this program's."""
    main = sys.modules["__main__"].__spec__
    program = f"python -m {main.name}" if main is not None else "python"
    return {
        "command": " ".join([program, *map(shlex.quote, sys.argv[1:])]),
        "commit": _commit(),
        "date": datetime.now().astimezone().isoformat(" ", "minutes"),
        "machine": f"{_processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "threads": os.environ.get("OMP_NUM_THREADS", "unset"),
    }


def _commit() -> str:
    """The commit of the checkout, with a mark if files differ from it."""

    def git(*command: str) -> str:
        done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if git("status", "--porcelain", "-uno") else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
