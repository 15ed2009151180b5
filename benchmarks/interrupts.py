"""Ctrl-C and SIGTERM: `python -m benchmarks.interrupts --rounds 100 --out runs/interrupts.json`.

Every verb that computes, on tiny-turbo and the example digits, gets a signal at a random time of its run: to its process group,
as a terminal sends Ctrl-C, or to the process alone, as a scheduler sends SIGTERM. Required: exit code 130 or 143 within 15 s, a
last line that reports the signal, and nothing left: no process, no file in /dev/shm or the temporary folder. A verb that ends
before the signal is counted apart. The seed is printed.
"""

import argparse
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.families import TOLD, Family, scratch, shared_memory
from benchmarks.results import write_results
from benchmarks.scenes import CLIP, MODEL, ON_MODEL, PAIRS, SOME, assignments, cycles, first_pairs, training

#: Seconds within which a verb must end after the signal, and after which it is killed.
ASKED_S, GIVEN_UP_S = 15.0, 60.0


def commands(out: Path, made: Path) -> dict[str, list[str]]:
    """A short run of each verb into `out`; `made` is a folder with finished assignments."""
    picture = ("--prompt", "a red three", "--target-image", f"{PAIRS}/images/0000.png")
    found = {
        "assign": ["assign", *ON_MODEL, "--pairs", PAIRS, *SOME, "--steps", "4"],
        "assign, no pool": ["assign", *ON_MODEL, "--pairs", PAIRS, *SOME, "--steps", "4", "--workers", "0"],
        "train": training(made),
        "train, no pool": training(made, "--num-workers", "0"),
        "evaluate": ["evaluate", *ON_MODEL, "--pairs", PAIRS, *SOME, "--rows", "24"],
        "reward": ["reward", *ON_MODEL, *CLIP, "--prompt", "a red three"],
        "invert": ["invert", *ON_MODEL, *picture],
        "generate": ["generate", *ON_MODEL, "--prompt", "a red three"],
        "look": ["look", PAIRS],
    }
    return {
        **{name: [*command, "--out", str(out)] for name, command in found.items()},
        "em": cycles(made.parent / "pairs", out),
        "convert": ["convert", MODEL, "--out", str(out / "one.safetensors")],
    }


@dataclass
class Run:
    """The result of one run."""

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


def run(verb: str, command: list[str], folder: Path, number: int, group: bool, after: float) -> Run:
    """Start a verb, send the signal after `seconds`, and wait."""
    shm = shared_memory()
    family = Family(command, folder / "tmp", folder / "log")
    family.watch(after)
    family.tell(number, group)
    told = family.seconds
    code = family.end(GIVEN_UP_S)
    seconds = family.seconds - told
    # The processes that it started may end after it, within the same time.
    left = family.left(ASKED_S - seconds) + [f"/dev/shm/{name}" for name in shared_memory() - shm]
    return Run(verb, number, group, round(after, 2), code, round(seconds, 2), family.lines()[-1], left)


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
        first_pairs(root / "pairs", 32)
        assignments(made)
        verbs = [v for v in commands(root, made) if not args.verbs or v in args.verbs]
        whole: dict[str, float] = {}
        for verb in verbs:
            with scratch() as folder:
                family = Family(commands(folder / "out", made)[verb], folder / "tmp", folder / "log")
                code = family.end(3600)
                assert code == 0, (verb, code, family.lines()[-1])
            whole[verb] = family.seconds
            print(f"{verb}: {whole[verb]:.1f} s undisturbed", flush=True)
        for i in range(args.rounds):
            verb = verbs[i % len(verbs)]
            number, group = draw.choice(TOLD)
            with scratch() as folder:
                command = commands(folder / "out", made)[verb]
                one = run(verb, command, folder, number, group, draw.uniform(0, whole[verb]))
            ended.append(one)
            if not one.right:
                print(one, flush=True)
    met = [one for one in ended if not one.through]
    right = sum(one.right for one in met)
    print(
        f"{right} of {len(met)} ended as required, {len(ended) - len(met)} ended before the signal; "
        f"slowest {max((one.seconds for one in met), default=0):.1f} s"
    )
    results: dict[str, Any] = {"seed": args.seed, "undisturbed_s": whole, "right": right, "told": len(met)}
    write_results(results | {"runs": [asdict(one) for one in ended]}, args.out)


if __name__ == "__main__":
    main()
