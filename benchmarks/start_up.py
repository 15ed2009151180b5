"""The start-up time of verbs: `python -m benchmarks.start_up --against CHECKOUT --out runs/start-up.json`.

Runs this checkout and another one of this repository in turns: `generate` and `invert` of one image, the `em` of `make demo`, and
the same `em` with almost no work in each step, which is nearly all start-up. Measured are clock time, and processor time over all
processes of the machine, so nothing else should run. Then the time that a Ray worker needs to load a model, as a fork and as a
new Python process.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.results import write_results

MODEL = Path("models/tiny-turbo").absolute()
DIGITS = Path("examples/digits").absolute()


def busy() -> float:
    """Processor seconds of the machine since its start, over all cores."""
    with open("/proc/stat") as stat:
        user, nice, system, _idle, _wait, *interrupts = map(int, stat.readline().split()[1:8])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def timed(work: Callable[[], Any]) -> dict[str, float]:
    began, before = time.perf_counter(), busy()
    work()
    return {"clock": time.perf_counter() - began, "processor": busy() - before}


def verb(place: Path, argv: list[str], folder: Path) -> dict[str, float]:
    """One run of a verb of that checkout."""
    environment = {**os.environ, "PYTHONPATH": str(place), "RAY_ADDRESS": "local"}
    command = [sys.executable, "-m", "rayjobs", *argv]

    def work() -> None:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(argv)} in {place}:\n{done.stderr}")

    return timed(work)


def few_pairs(folder: Path, rows: int) -> Path:
    """A pair set of the first rows of the digits."""
    shutil.copytree(DIGITS / "images", folder / "images")
    lines = (DIGITS / "pairs.jsonl").read_text().splitlines(keepends=True)[:rows]
    (folder / "pairs.jsonl").write_text("".join(lines))
    return folder


def commands(scratch: Path) -> dict[str, list[str]]:
    """The verbs by name, without their output folders."""
    pairs = few_pairs(scratch / "pairs", 16)
    em = ["em", "--config", str(DIGITS.parent / "demo.yaml"), "--model", str(MODEL)]
    em += ["--heldout", str(DIGITS / "heldout.jsonl")]
    little = ["--assign.steps", "1", "--train.epochs", "1", "--evaluate.rows", "16", "--evaluate.steps", "1"]
    return {
        "generate": ["generate", "--model", str(MODEL), "--prompt", "a red three", "--out"],
        "invert": [
            "invert",
            "--target-image",
            str(DIGITS / "images" / "0000.png"),
            "--model",
            str(MODEL),
            "--prompt",
            "a red three",
            "--out",
        ],
        "em": [*em, "--pairs", str(DIGITS), "--work-dir"],
        "em, little to do": [*em, "--pairs", str(pairs), *little, "--work-dir"],
    }


class Loads:
    """An actor that loads the same things as a worker of the pool."""

    def __init__(self) -> None:
        from ortho_core.generators.load import load_generator
        from ortho_core.generators.model_folder import ModelFolder

        load_generator(ModelFolder.open(MODEL))

    def ready(self) -> bool:
        return True


def workers(forked: bool, turns: int) -> list[dict[str, float]]:
    """Measure in a new Ray. The first worker is not counted, since the forking process imports before it."""
    import ray

    from rayjobs.processes.forks import fork_server

    def start() -> None:
        actor = ray.remote(num_cpus=0)(Loads).remote()
        ray.get(actor.ready.remote())
        ray.kill(actor)

    with fork_server() if forked else nullcontext({}) as runtime_env:
        ray.init("local", runtime_env=runtime_env or None, include_dashboard=False, log_to_driver=False)
        start()
        found = [timed(start) for _ in range(turns)]
        ray.shutdown()
    return found


def row(title: str, turns: list[dict[str, dict[str, float]]]) -> str:
    """Medians of clock time; ratios of clock and processor time to the other checkout."""
    kinds = ("clock", "processor")
    here, *there = (
        {kind: statistics.median(turn[name][kind] for turn in turns) for kind in kinds} for name in turns[0]
    )
    cells = [f"{here['clock']:.1f}", f"{here['processor']:.1f}"]
    for other in there:
        cells += [f"{other['clock']:.1f}", f"{other['processor']:.1f}"]
        cells += [f"{here[kind] / other[kind]:.2f}" for kind in kinds]
    return f"| {title} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--only", nargs="+", help="of these: generate, invert, em, 'em, little to do', worker")
    parser.add_argument("--turns", type=int, default=5, help="an em has a third of them")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    places = {"here": Path.cwd()} | ({"there": args.against.absolute()} if args.against else {})
    results: dict[str, Any] = {}
    head = ["", "clock, s", "processor, s"] + (["there", "there", "ratio", "ratio"] if args.against else [])
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for title, argv in commands(scratch).items():
            if args.only and title not in args.only:
                continue
            turns = []
            for turn in range(args.turns if argv[0] != "em" else max(1, args.turns // 3)):
                outs = {place: scratch / f"{title}-{turn}-{place}" for place in places}
                turns.append({name: verb(place, [*argv, str(outs[name])], scratch) for name, place in places.items()})
            results[title] = turns
            print(row(title, turns), flush=True)
    if not args.only or "worker" in args.only:
        for title, forked in (("a worker, forked", True), ("a worker, its own Python", False)):
            found = workers(forked, args.turns)
            results[title] = found
            print(row(title, [{"here": turn} for turn in found]), flush=True)
    if "em" in results and "em, little to do" in results:
        shares = {
            name: statistics.median(turn[name]["clock"] for turn in results["em, little to do"])
            / statistics.median(turn[name]["clock"] for turn in results["em"])
            for name in places
        }
        results["share of start-up in em"] = shares
        print("start-up, of an em: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    write_results(results, args.out)


if __name__ == "__main__":
    main()
