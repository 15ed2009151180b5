"""Where images go: which prompts a file asks for, and the names that the images get, plain or as a benchmark reads them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ortho_core.errors import UserError
from ortho_core.pairs.layouts.metadata import PAIRS
from ortho_core.pairs.prompt_file import read_prompt_rows, read_prompts
from ortho_core.records.plan import Settings

#: The styles of HPSv2's benchmark: `hpsv2.benchmark_prompts` keeps the prompts of each as STYLE.json in one folder.
STYLES = ("anime", "concept-art", "paintings", "photo")
#: HPSv2 takes everything in the folder of its images for a style, so nothing else may be there.
HPSV2_IMAGES = "images"


@dataclass(frozen=True)
class Asked:
    """A prompt, and how the names of its images begin."""

    prompt: str
    stem: str
    #: What the file of prompts holds of it; GenEval reads it beside the images.
    row: Settings


@dataclass(frozen=True)
class Arrangement:
    """How a file of prompts is read, and what its images are called."""

    read: Callable[[Path], list[Asked]]
    #: What follows the stem in the name of image `i`.
    suffix: str
    images_per_prompt: int
    #: Whether the benchmark takes no other number of images.
    settled: bool = False
    #: Name, after the folder in the stem, of a file with the prompt's row.
    row_file: str = ""
    #: The command to type next; `{path}` is the folder, and `{out}` the same as a shell takes it.
    next_step: str = ""


def plain(file: Path) -> list[Asked]:
    return [Asked(row["prompt"], f"{n:05d}_", row) for n, row in enumerate(read_prompt_rows(file))]


def geneval(file: Path) -> list[Asked]:
    """The rows of GenEval's evaluation_metadata.jsonl."""
    rows = read_prompt_rows(file)
    for n, row in enumerate(rows):
        if not isinstance(row.get("tag"), str):
            raise UserError(
                f"--layout geneval: prompt {n} of {file} has no `tag`; accepted: GenEval's evaluation_metadata.jsonl or its like"
            )
    return [Asked(row["prompt"], f"{n:05d}/samples/", row) for n, row in enumerate(rows)]


def hpsv2(place: Path) -> list[Asked]:
    """The prompts of all styles, from a folder of STYLE.json, or those of the style that a file is named by."""
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
#: Of one prompt.
SINGLE = Arrangement(lambda file: [], "{i:04d}.png", 16)
