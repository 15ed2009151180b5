"""Short runs of the verbs, on tiny-turbo and the example digits, for programs that disturb them."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.rayjobs.download.hub_server import serve

MODEL, PAIRS = "models/tiny-turbo", "examples/digits"
CLIP = ("--reward", "clip", "--reward-folders", "clip=ortho_core/evaluation/tiny-clip")
SOME = ("--part", "heldout:24")
ON_MODEL = ("--model", MODEL)


@dataclass(frozen=True)
class Scene:
    """A run that resumes. Its results are in `out` below the folder that its command is built for."""

    name: str
    command: Callable[[Path], list[str]]
    #: The command of a second driver, if it differs.
    other: Callable[[Path], list[str]] | None = None

    def second(self, place: Path) -> list[str]:
        return (self.other or self.command)(place)


def ortho(*command: str) -> None:
    """Run a verb to its end."""
    subprocess.run([sys.executable, "-m", "rayjobs", *command], check=True, capture_output=True)


def assignments(out: Path) -> None:
    """Finished assignments of a few pairs."""
    ortho("assign", *ON_MODEL, "--pairs", PAIRS, *SOME, "--steps", "2", "--workers", "0", "--out", str(out))


def first_pairs(folder: Path, rows: int) -> None:
    """A pair set of the first example pairs."""
    (folder / "images").mkdir(parents=True)
    lines = Path(PAIRS, "pairs.jsonl").read_text().splitlines(keepends=True)[:rows]
    for line in lines:
        image = json.loads(line)["image"]
        shutil.copyfile(Path(PAIRS, image), folder / image)
    (folder / "pairs.jsonl").write_text("".join(lines))


def training(made: Path, *more: str) -> list[str]:
    """`train` on finished assignments, with a state after each update."""
    command = ["train", *ON_MODEL, "--assignments", str(made), "--epochs", "2", "--batch-size", "8"]
    return [*command, "--checkpoint-every", "1", *more]


def cycles(pairs: Path, work: Path) -> list[str]:
    """Two cycles of `em`."""
    command = ["em", *ON_MODEL, "--pairs", str(pairs), "--cycles", "2", "--heldout", "8", "--assign.steps", "2"]
    return [*command, "--train.epochs", "1", "--train.batch-size", "8", "--work-dir", str(work)]


@contextmanager
def scenes(root: Path) -> Iterator[list[Scene]]:
    """A scene for every verb that resumes; their inputs are made below `root`."""
    made, pairs, samples = root / "made", root / "pairs", root / "samples"
    first_pairs(pairs, 32)
    assignments(made)
    ortho("export", *ON_MODEL, "--assignments", str(made), "--out", str(samples))
    (prompts := root / "prompts.txt").write_text("".join(f"a red {n}\n" for n in ("one", "two", "three", "four")))
    with serve() as (hub, url):
        files = {file.name: file.read_bytes() for file in Path(MODEL, "unet").iterdir()}
        hub.repositories = {"someone/one": files}
        catalog = root / "catalog.toml"
        catalog.write_text(CATALOG.replace("FILES", ", ".join(f'{{ path = "{name}" }}' for name in files)))

        def sweep(place: Path) -> list[str]:
            command = ["sweep", *ON_MODEL, "--pairs", str(pairs), "--heldout", "8", "--assign.steps", "2"]
            command += ["--train.epochs", "1", "--train.batch-size", "8", "--baseline", "false"]
            return [*command, "--sweep.train.lr", "1e-4,2e-4", "--work-dir", str(place / "out")]

        def with_cache(work: str) -> Callable[[Path], list[str]]:
            return lambda place: [*cycles(pairs, place / work), "--assignments-cache", str(place / "cache")]

        def out(*command: str) -> Callable[[Path], list[str]]:
            return lambda place: [*command, "--out", str(place / "out")]

        yield [
            Scene("em", lambda place: cycles(pairs, place / "out")),
            Scene("evaluate", out("evaluate", *ON_MODEL, "--pairs", PAIRS, *SOME, "--rows", "24")),
            Scene("sweep", sweep),
            Scene("reward", out("reward", *ON_MODEL, *CLIP, "--prompts", str(prompts), "--steps", "4")),
            Scene("train", out(*training(made))),
            Scene("import", out("import", *ON_MODEL, "--pairs", PAIRS, "--samples", str(samples))),
            Scene("em, one cache", with_cache("out"), with_cache("other")),
            Scene("download", out("download", "--catalog", str(catalog), "--mirror", url, "--only", "one")),
            Scene("assign", out("assign", *ON_MODEL, "--pairs", PAIRS, *SOME, "--steps", "4")),
        ]


CATALOG = """
[models.one]
title = "One"
kind = "part"
folder = "one"
repository = "someone/one"
revision = "main"
files = [FILES]
[models.one.license]
id = "mit"
commercial = "yes"
allows = "any use"
"""
