"""Layouts of generated images: how a file of prompts is read, and the images' names, plain or as a benchmark expects them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ortho_core.errors import UserError
from ortho_core.pairs.layouts.metadata import PAIRS
from ortho_core.pairs.prompt_file import read_prompt_rows, read_prompts
from ortho_core.records.plan import Settings

#: The styles of HPSv2's benchmark: `hpsv2.benchmark_prompts` keeps the prompts of each as STYLE.json in one folder.
STYLES = ("anime", "concept-art", "paintings", "photo")
#: HPSv2 reads every name in its image folder as a style, so the images are in a folder of their own, without other files.
HPSV2_IMAGES = "images"


@dataclass(frozen=True)
class Asked:
    """A prompt, and the beginning (stem) of its images' names."""

    prompt: str
    stem: str
    #: The prompt's row in the file of prompts; GenEval reads it from a file beside the images.
    row: Settings


@dataclass(frozen=True)
class Arrangement:
    """How a file of prompts is read, and how its images are named."""

    read: Callable[[Path], list[Asked]]
    #: Follows the stem in the name of image `i` of a prompt.
    suffix: str
    images_per_prompt: int
    #: Whether the benchmark accepts only this number of images per prompt.
    settled: bool = False
    #: Name of a file with the prompt's row, in the folder that the stem begins with; "": no such file.
    row_file: str = ""
    #: The command to run next; `{path}` is the output folder, and `{out}` is the same, quoted for a shell.
    next_step: str = ""


def plain(file: Path) -> list[Asked]:
    """The prompts of a file, numbered."""
    return [Asked(row["prompt"], f"{n:05d}_", row) for n, row in enumerate(read_prompt_rows(file))]


def geneval(file: Path) -> list[Asked]:
    """The rows of GenEval's evaluation_metadata.jsonl."""
    rows = read_prompt_rows(file)
    for n, row in enumerate(rows):
        if not isinstance(row.get("tag"), str):
            raise UserError(
                f"--layout geneval: prompt {n} of {file} has no `tag`; accepted: rows like GenEval's evaluation_metadata.jsonl"
            )
    return [Asked(row["prompt"], f"{n:05d}/samples/", row) for n, row in enumerate(rows)]


def hpsv2(place: Path) -> list[Asked]:
    """The prompts of all styles, from a folder with STYLE.json of each; or of one style, from a file STYLE.json."""
    files = [place / f"{style}.json" for style in STYLES] if place.is_dir() else [place]
    return [
        Asked(prompt, f"{HPSV2_IMAGES}/{file.stem}/{n:05d}", {"prompt": prompt})
        for file in files
        for n, prompt in enumerate(read_prompts(file))
    ]


ARRANGEMENTS = {
    "plain": Arrangement(plain, "{i:04d}.png", 1, next_step=f"ortho look {{out}}/{PAIRS}"),
    "geneval": Arrangement(
        geneval,
        "{i:04d}.png",
        4,
        row_file="metadata.jsonl",
        next_step="in a clone of GenEval, python evaluation/evaluate_images.py {out} --outfile {out}/results.jsonl --model-path "
        "DETECTOR",
    ),
    "hpsv2": Arrangement(
        hpsv2,
        ".jpg",
        1,
        settled=True,
        next_step=f"python -c \"import hpsv2; hpsv2.evaluate('{{path}}/{HPSV2_IMAGES}', hps_version='v2.1')\"",
    ),
}
#: The layout with --prompt.
SINGLE = Arrangement(lambda file: [], "{i:04d}.png", 16)
