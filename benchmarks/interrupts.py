"""What Ctrl-C and SIGTERM end: `python -m benchmarks.interrupts --rounds 100 --out runs/interrupts.json`.

Every verb that computes, on tiny-turbo and the example digits, is told to end at a random instant of its run, by the signal to
its whole process group (as a terminal sends Ctrl-C) or to the one process (as a scheduler sends SIGTERM). Asked for: exit code
130 or 143, one line that says so and is the last, within 15 s, and nothing left: no process, nothing in /dev/shm or in the
temporary folder. A verb that is through before the signal comes counts as through. The seed is printed.
"""

import argparse
import getpass
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.results import write_results

MODEL, PAIRS = "models/tiny-turbo", "examples/digits"
#: Seconds that a verb has from the signal on.
ASKED_S = 15.0
#: Seconds after which it is given up.
GIVEN_UP_S = 60.0

#: What Ray and PyTorch keep in a temporary folder for the next run.
CACHES = ("ray", f"torchinductor_{getpass.getuser()}")
CLIP = ("--reward", "clip", "--reward-folders", "clip=ortho_core/evaluation/tiny-clip")
SOME = ("--part", "heldout:24")


def commands(out: Path, made: Path) -> dict[str, list[str]]:
    """A short run of each verb into `out`; `made` holds finished assignments."""
    model = ("--model", MODEL)
    em = (*model, "--pairs", str(made.parent / "pairs"), "--cycles", "2", "--heldout", "8", "--assign.steps", "2")
    return {
        "assign": ["assign", *model, "--pairs", PAIRS, *SOME, "--steps", "4", "--out", str(out)],
        "assign, no pool": [
            *("assign", *model, "--pairs", PAIRS, *SOME, "--steps", "4", "--workers", "0", "--out", str(out)),
        ],
        "train": [
            *("train", *model, "--assignments", str(made), "--epochs", "2", "--batch-size", "8"),
            *("--checkpoint-every", "1", "--out", str(out)),
        ],
        "train, no pool": [
            *("train", *model, "--assignments", str(made), "--epochs", "2", "--batch-size", "8"),
            *("--num-workers", "0", "--out", str(out)),
        ],
        "em": ["em", *em, "--train.epochs", "1", "--train.batch-size", "8", "--work-dir", str(out)],
        "evaluate": ["evaluate", *model, "--pairs", PAIRS, *SOME, "--rows", "24", "--out", str(out)],
        "reward": ["reward", *model, *CLIP, "--prompt", "a red three", "--out", str(out)],
        "invert": [
            *("invert", *model, "--prompt", "a red three", "--target-image", f"{PAIRS}/images/0000.png"),
            *("--out", str(out)),
        ],
        "generate": ["generate", *model, "--prompt", "a red three", "--out", str(out)],
        "look": ["look", PAIRS, "--out", str(out)],
        "convert": ["convert", MODEL, "--out", str(out / "one.safetensors")],
    }


@dataclass
class Run:
    """What became of one run."""

    verb: str
    number: int
    group: bool
    after_s: float
    code: int | None
    seconds: float
    last: str
    left: list[str]

    @property
    def through(self) -> bool:
        return self.code in (0, 3)

    @property
    def right(self) -> bool:
        said = self.last.startswith(f"ortho {self.verb.split(',')[0]}: ") and "the same command" in self.last
        told = self.code == 128 + self.number and said
        return (self.through or told) and self.seconds <= ASKED_S and not self.left


def run(verb: str, command: list[str], folder: Path, number: int, group: bool, after: float | None) -> Run:
    """Start, tell, wait. `after`: seconds until the signal; None: none is sent."""
    temporary, shm = folder / "tmp", set(os.listdir("/dev/shm"))
    temporary.mkdir()
    log = folder / "log"
    environment = os.environ | {"TMPDIR": str(temporary), "RAY_TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "rayjobs", *command],
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            env=environment,
        )
        started = time.monotonic()
        family: dict[int, psutil.Process] = {}
        while process.poll() is None and (after is None or time.monotonic() - started < after):
            _meet(process.pid, family)
            time.sleep(0.05)
        _meet(process.pid, family)
        told = time.monotonic()
        if process.poll() is None:
            (os.killpg if group else os.kill)(process.pid, number)
        try:
            process.wait(GIVEN_UP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    seconds = time.monotonic() - told
    others = [p for p in family.values() if p.pid != process.pid]
    while any(map(_alive, others)) and time.monotonic() - told < ASKED_S:  # these may end after it, in the same time
        time.sleep(0.2)
    left = [f"process {_name(p)}" for p in others if _alive(p)]
    left += [f"/dev/shm/{name}" for name in set(os.listdir("/dev/shm")) - shm]
    left += [f"tmp/{name}" for name in os.listdir(temporary) if name not in CACHES]
    for one in family.values():
        if _alive(one):
            one.kill()
    lines = log.read_text(errors="replace").strip().splitlines()
    took = told - started if after is None else after
    return Run(verb, number, group, round(took, 2), process.returncode, round(seconds, 2), (lines or [""])[-1], left)


def _meet(pid: int, family: dict[int, psutil.Process]) -> None:
    try:
        family |= {p.pid: p for p in psutil.Process(pid).children(recursive=True)}
    except psutil.NoSuchProcess:
        return


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:80] or process.name()
    except psutil.NoSuchProcess:
        return "gone"


def write_pairs(folder: Path, rows: int) -> None:
    """The first of the example's pairs, in a set of their own."""
    (folder / "images").mkdir(parents=True)
    lines = Path(PAIRS, "pairs.jsonl").read_text().splitlines(keepends=True)[:rows]
    for line in lines:
        image = json.loads(line)["image"]
        shutil.copyfile(Path(PAIRS, image), folder / image)
    (folder / "pairs.jsonl").write_text("".join(lines))


@contextmanager
def scratch() -> Iterator[Path]:
    # A short path: Ray's sockets lie below it.
    with tempfile.TemporaryDirectory(prefix="i", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", nargs="*", help="only these")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    print(f"seed {args.seed}")
    ended: list[Run] = []
    with scratch() as root:
        made = root / "made"
        write_pairs(root / "pairs", 32)
        once = [
            "assign",
            "--model",
            MODEL,
            "--pairs",
            PAIRS,
            *SOME,
            "--steps",
            "2",
            "--workers",
            "0",
            "--out",
            str(made),
        ]
        subprocess.run([sys.executable, "-m", "rayjobs", *once], check=True, capture_output=True)
        verbs = [v for v in commands(root, made) if not args.verbs or v in args.verbs]
        whole: dict[str, float] = {}
        for verb in verbs:
            with scratch() as folder:
                undisturbed = run(verb, commands(folder / "out", made)[verb], folder, signal.SIGINT, False, None)
            assert undisturbed.code == 0, (verb, undisturbed)
            whole[verb] = undisturbed.after_s
            print(f"{verb}: {whole[verb]:.1f} s undisturbed", flush=True)
        for i in range(args.rounds):
            verb = verbs[i % len(verbs)]
            number, group = draw.choice([(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False)])
            with scratch() as folder:
                command = commands(folder / "out", made)[verb]
                one = run(verb, command, folder, number, group, draw.uniform(0, whole[verb]))
            ended.append(one)
            if not one.right:
                print(one, flush=True)
    met = [one for one in ended if not one.through]
    right = sum(one.right for one in met)
    print(
        f"{right} of {len(met)} as asked for, {len(ended) - len(met)} through before; "
        f"slowest {max((one.seconds for one in met), default=0):.1f} s"
    )
    results: dict[str, Any] = {"seed": args.seed, "undisturbed_s": whole, "right": right, "told": len(met)}
    write_results(results | {"runs": [asdict(one) for one in ended]}, args.out)


if __name__ == "__main__":
    main()
