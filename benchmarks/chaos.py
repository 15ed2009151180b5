"""Kill anything at any moment: `python -m benchmarks.chaos --events 100 --out runs/chaos.json`.

Runs of the verbs that resume, on tiny-turbo and the example digits, are disturbed at random times: SIGKILL, SIGTERM or SIGINT to
the driver; SIGKILL to a Ray worker, to the process that forks workers, or to the raylet; a second driver with the same command; a
full disk. After each event that ended the run, the same command is started again, at the end without an event. Then the folder is
compared with those of two undisturbed runs, and left-over processes and files in `/dev/shm`, the temporary folder and hidden
files are counted. The output must have no traceback.

`--kinds second --events 20` tests pairs of drivers with random starts, `--verbs train --kinds kill --events 20` kills of `train`.
The full disk needs root, to mount a disk; without root that kind is skipped with a message. The seed is printed.
"""

import argparse
import contextlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from benchmarks.families import TOLD, Family, name_of, scratch, shared_memory
from benchmarks.results import write_results
from benchmarks.same_results import Content, content_of, differences
from benchmarks.scenes import Scene, scenes

#: Seconds that a run may take beyond its undisturbed time, and within which left-over processes must end.
PATIENCE_S, LINGERS_S = 240.0, 30.0
#: Most seconds that the disk stays full, and its size.
FULL_S, DISK = 20.0, "700m"
#: Most starts after the last event: a run that ended because of a dead worker may need another start.
STARTS = 4
KINDS = ("kill", "kill group", "tell", "worker", "fork server", "raylet", "second", "disk")


@dataclass
class Life:
    """One run of a verb, from its first start to its end, and its result."""

    scene: str
    events: list[str] = field(default_factory=list)
    codes: list[int | None] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    different: dict[str, float] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    left_bytes: int = 0

    @property
    def right(self) -> bool:
        return not (self.faults or self.different or self.left)


class Disturbed:
    """A run with the folder `place / "out"`, disturbed at random times."""

    def __init__(self, scene: Scene, place: Path, whole_s: float, draw: random.Random) -> None:
        self.scene, self.place, self.whole_s, self.draw = scene, place, whole_s, draw
        self.life, self.started = Life(scene.name), list[Family]()
        self.beside = list[Family]()

    def start(self, command: list[str]) -> Family:
        family = Family(command, self.place.parent / "tmp", self.place.parent / f"log-{len(self.started)}")
        self.started.append(family)
        return family

    def live(self, kinds: tuple[str, ...], events: int) -> Life:
        life, shm = self.life, shared_memory()
        left_over = STARTS
        while True:
            family = self.start(self.scene.command(self.place))
            while events and family.watch(family.seconds + self.draw.uniform(0, self.whole_s)):
                self.disturb(family, self.draw.choice(kinds))
                events -= 1
            code = family.end(self.whole_s + PATIENCE_S)
            life.codes.append(code)
            if code is None:
                life.faults.append(f"hung after {life.events[-1:]}")
            if code == 0 or (left_over := left_over - (not events)) == 0:
                break
        for other in self.beside:
            life.codes.append(code_of_other := other.end(self.whole_s + PATIENCE_S))
            if code_of_other != 0:
                life.faults.append(f"the second driver ended with {code_of_other}: {other.lines()[-1]}")
        if code != 0:
            life.faults.append(f"did not end well: {code}, {family.lines()[-1]}")
        for each in self.started:
            if any("Traceback (most recent call last)" in line for line in each.lines()):
                life.faults.append(f"a traceback in {each.log.read_text(errors='replace')[-3000:]}")
        life.left = [remnant for each in self.started for remnant in each.left(LINGERS_S)]
        life.left += [f"/dev/shm/{name}" for name in shared_memory() - shm]
        kept = [file for file in self.started[0].temporary.rglob("*") if file.is_file() and not file.is_symlink()]
        life.left_bytes = sum(file.stat().st_size for file in kept if "ray" not in file.parts)
        return life

    def disturb(self, family: Family, kind: str) -> None:
        processes = [(p, name_of(p)) for p in family.alive()]
        others = {
            "worker": [p for p, name in processes if name.startswith("ray::")],
            "raylet": [p for p, name in processes if "raylet/raylet" in name],
            "fork server": [p for p, name in processes if "-c import json, sys" in name],
        }
        if not others.get(kind, processes):
            kind = "kill"
        if kind == "disk" and not self.place.is_mount():
            kind = "kill"
        self.life.events.append(f"{kind} after {family.seconds:.1f} s")
        if kind in ("kill", "kill group"):
            family.tell(signal.SIGKILL, kind == "kill group")
            family.end(PATIENCE_S)
        elif kind == "tell":
            number, group = self.draw.choice(TOLD)
            family.tell(number, group)
            if (code := family.end(PATIENCE_S)) not in (128 + number, 0):
                self.life.faults.append(f"after signal {number} it ended with {code}: {family.lines()[-1]}")
        elif kind in others:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.draw.choice(others[kind]).kill()
        elif kind == "second":
            self.beside.append(self.start(self.scene.second(self.place)))
        else:
            with full(self.place):
                family.watch(family.seconds + FULL_S)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Fill a disk to the last byte, with a file that is deleted after the block."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as stream:
        while stream.write(bytes(1 << 16)):
            pass
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def disk(place: Path, mounted: bool) -> Iterator[Path]:
    """An empty folder, on a separate disk if one can be mounted."""
    place.mkdir()
    if mounted:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=True)
        shutil.rmtree(place)


def may_mount(root: Path) -> bool:
    try:
        with disk(root / "probe", True):
            return True
    except (OSError, subprocess.CalledProcessError):
        shutil.rmtree(root / "probe", ignore_errors=True)
        return False


def undisturbed(scene: Scene, root: Path, mounted: bool) -> tuple[Content, float]:
    """The content of an undisturbed run's folder, and the seconds of the run."""
    with disk(root / "work", mounted) as place:
        family = Family(scene.command(place), root / "tmp", root / "log")
        code = family.end(3600)
        assert code == 0, (scene.name, code, family.lines()[-20:])
        return content_of(place / "out"), family.seconds


def disturbed(
    scene: Scene, root: Path, mounted: bool, whole_s: float, draw: random.Random, kinds: tuple[str, ...], events: int
) -> tuple[Life, Content]:
    with disk(root / "work", mounted) as place:
        run = Disturbed(scene, place, whole_s, draw)
        life = run.live(kinds, events)
        found = content_of(place / "out")
    for log in [*root.glob("log-*")]:
        log.unlink()
    shutil.rmtree(root / "tmp")
    return life, found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--minutes", type=float, help="start no further run after this many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", nargs="*", help="only these")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    draw = random.Random(args.seed)
    print(f"seed {args.seed}")
    lives: list[Life] = []
    with ExitStack() as stack:
        root = stack.enter_context(scratch())
        mounted = may_mount(root)
        kinds = tuple(kind for kind in args.kinds if mounted or kind != "disk")
        if not mounted:
            print("no disk can be mounted here: the full disk is skipped")
        known = [scene for scene in stack.enter_context(scenes(root)) if not args.verbs or scene.name in args.verbs]
        expected: dict[str, tuple[Content, set[str], float]] = {}
        for scene in known:
            (one, _), (other, seconds) = (undisturbed(scene, root, mounted) for _ in range(2))
            by_themselves = set(differences(one, other))
            expected[scene.name] = (other, by_themselves, seconds)
            print(
                f"{scene.name}: {seconds:.1f} s, {len(other)} values, {len(by_themselves)} differ between undisturbed runs",
                flush=True,
            )
        turn, until = 0, float("inf") if args.minutes is None else time.monotonic() + 60 * args.minutes
        while (done := sum(len(life.events) for life in lives)) < args.events and time.monotonic() < until:
            scene = known[turn % len(known)]
            turn += 1
            same, by_themselves, seconds = expected[scene.name]
            events = 1 if kinds == ("second",) else min(draw.randint(1, 3), args.events - done)
            life, found = disturbed(scene, root, mounted, seconds, draw, kinds, events)
            life.different = {k: v for k, v in differences(found, same).items() if k not in by_themselves}
            lives.append(life)
            print(f"{scene.name}: {', '.join(life.events)}: {'the same' if life.right else life}", flush=True)
    events = [event.split(" after")[0] for life in lives for event in life.events]
    wrong = [life for life in lives if not life.right]
    print(
        f"{len(events)} events {dict(Counter(events))} in {len(lives)} runs: {len(wrong)} differ from undisturbed runs; "
        f"{sum(life.left_bytes for life in lives)} bytes left in the temporary folders"
    )
    write_results(
        {
            "seed": args.seed,
            "undisturbed_s": {name: seconds for name, (_, _, seconds) in expected.items()},
            "left_out": {name: sorted(left_out) for name, (_, left_out, _) in expected.items()},
            "wrong": len(wrong),
            "lives": [asdict(life) for life in lives],
        },
        args.out,
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
