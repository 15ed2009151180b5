"""Every measured figure of the README is that of a page of results, where its program and conditions are named."""

import re
import tomllib

import pytest

from rayjobs.verb.catalog import CATALOG
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "docs" / "results"
PROSE = re.sub(r"^```.*?^```\n", "", README, flags=re.DOTALL | re.MULTILINE)
#: README row of the table, and that row's name on the page of the study.
MODELS = {
    "base model": "base",
    "direct fine-tuning, random noise": "direct SFT",
    "**Ortho** (`ortho em`)": "**EM**, held at general prompts",
}


def tables(text: str) -> list[dict[str, dict[str, str]]]:
    """The Markdown tables of a text: cells by row title and column title."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in line.strip("|\n").split("|")] for line in block.splitlines())
        found.append({row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows})
    return found


def study(name: str) -> dict[str, dict[str, str]]:
    """The table that follows a bold name on the study's page."""
    page = (RESULTS / "matching.md").read_text()
    return tables(page[page.index(f"**{name}**") :])[0]


def rounds_to(exact: str, shown: str) -> bool:
    """Whether each number of one cell is the other's, rounded to the digits that it has."""
    pairs = list(zip(re.findall(r"-?\d+(?:\.\d+)?", exact), re.findall(r"-?\d+(?:\.\d+)?", shown), strict=True))
    ends = [len(number.partition(".")[2]) for _, number in pairs]
    return bool(pairs) and all(
        abs(float(more) - float(less)) <= 0.5001 * 10**-end for (more, less), end in zip(pairs, ends, strict=True)
    )


@pytest.mark.parametrize(
    ("exact", "shown", "same"),
    [("0.395 ± 0.064", "0.40 ± 0.06", True), ("0.396", "0.39", False), ("1.511", "1.51", True)],
)
def test_a_figure_may_be_rounded_and_nothing_else(exact, shown, same):
    assert rounds_to(exact, shown) == same


def test_the_table_is_that_of_the_study():
    (table,) = [one for one in tables(README) if "base model" in one]
    assert list(table) == list(MODELS)
    closer, looks = study("2,048 other held-out images"), study("tiny-turbo")
    sources = {
        "KID ↓": (closer, "KID ↓"),
        "recall ↑": (closer, "recall ↑"),
        "diversity": (looks, "diversity"),
        "slant learned": (looks, "slant gap closed"),
        "drift at prompts outside the set ↓": (looks, "drift at other prompts ↓"),
    }
    for row, model in MODELS.items():
        assert list(table[row]) == list(sources)
        for column, (source, name) in sources.items():
            exact, shown = source[model][name], table[row][column]
            assert (exact, shown) == ("–", "0") or rounds_to(exact, shown), (row, column)


def test_the_sentences_below_it_say_what_the_study_found():
    page = (RESULTS / "matching.md").read_text()
    difference = re.search(
        r"KID less that of direct SFT: .*EM, held at general prompts (-[\d.]+ ± [\d.]+) \(lower\)", page
    )[1]
    assert f"(KID minus that of direct fine-tuning: {difference})" in README
    mnist, cifar = (
        [study(name)[model]["KID ↓"].split()[0] for model in ("**EM**, held at one other class", "direct SFT")]
        for name in ("MNIST", "CIFAR-10")
    )
    shown = re.search(r"is ([\d.]+) and ([\d.]+) on MNIST,\s+([\d.]+) and\s+([\d.]+) on CIFAR-10", README)
    assert all(map(rounds_to, [*mnist, *cifar], shown.groups()))
    ours, direct = (
        float(study("tiny-turbo")[model]["drift at other prompts ↓"].split()[0])
        for model in ("**EM**, held at general prompts", "direct SFT")
    )
    assert "a quarter as much" in README
    assert round(ours / direct, 2) == 0.25


def test_times_and_sizes_are_those_of_a_page():
    assert "about four minutes" in README
    assert "3 min 57 s from a fresh clone" in (RESULTS / "demo.md").read_text()
    memory, weights = (RESULTS / "memory.md").read_text(), (RESULTS / "m-step.md").read_text()
    assert re.search(r"A card of 12 GiB holds a LoRA at 512 pixels \(8 GiB with `int8`, 6 GiB with `nf4`\)", README)
    assert "fits a card of 12 GiB at 512 pixels, and with `--quantize` 6 to 8 GiB" in memory
    assert "training all weights needs 48 GiB or more" in README
    assert "48 to 56 GiB for all weights" in weights
    files = tomllib.loads(CATALOG.read_text())["models"]["sdxl-turbo"]["files"]
    assert f"{sum(file.get('size', 0) for file in files) / 1e9:.1f} GB" in README
    assert "6 GB" in (ROOT / "docs" / "start" / "install.md").read_text()


def test_no_other_figure_is_in_the_readme():
    """Those of the tests above, numbers of papers and links aside, and what is no measurement."""
    text = re.sub(r"\[\d{4}\.\d+\]\([^)]*\)|\]\([^)]*\)|`[^`]*`", "", PROSE)
    text = re.sub(r"^\|.* ± .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"KID of Ortho and of direct.*?CIFAR-10", "", text, flags=re.DOTALL)
    known = {"3.11", "2.0", "3.0", "-0.16", "0.13", "6", "8", "12", "48", "512", "2,048", "256", "95"}
    found = set(re.findall(r"(?<![\w.,-])-?\d[\d,]*(?:\.\d+)?(?![\w-])", text))
    assert found - known == set()
