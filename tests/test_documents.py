"""What the documents, and the docstrings, name is there: links, headings, paths, modules, verbs and their options."""

import importlib
import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from rayjobs.cli import VERBS, main
from tests.conftest import ROOT

PACKAGES = ("ortho_core", "rayjobs", "benchmarks", "models")
#: A path in one of the repository's folders. models/ also holds what `ortho download` brings, which is not looked for.
PATH = re.compile(
    r"(?<![\w/.~$-])(?:(?:ortho_core|rayjobs|benchmarks|cluster|docs|examples|tests)/|models/(?=recipes|tiny-|\w+\.))[\w./*-]*"
)
DOCUMENTS = sorted(
    {
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("[!.]*/README.md"),
        *ROOT.glob("[!.]*/**/tiny-*/README.md"),
    }
)
BENCHMARKS = "\n".join(file.read_text() for file in ROOT.glob("benchmarks/**/*.py"))
#: Options that stand alone in the text without being a verb's: those of the benchmarks, of `ray start` and of `sbatch`.
OTHERS = {*re.findall(r'add_argument\("(--[\w-]+)', BENCHMARKS), "--num-cpus", "--labels"}
OTHERS |= {"--nodes", "--cpus-per-task", "--gpus-per-node", "--mem", "--time", "--exclusive", "--signal"}
every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def code_of(text: str) -> list[str]:
    """Every span and every line of a block of commands, lines that go on joined; a block in a named language is left out."""
    commands = [block for block in FENCE.findall(text) if block.startswith("```\n")]
    blocks = [line for block in commands for line in block.replace("\\\n", " ").splitlines()[1:-1]]
    return blocks + re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#+ +(.+?) *$", FENCE.sub("", document.read_text()), re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        names.add(f"{name}-{found[name]}" if name in found else name)
        found[name] = found.get(name, 0) + 1
    return names


@every_document
def test_every_relative_link_leads_to_a_file_and_to_a_heading_of_it(document):
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", document.read_text()))
    for link in re.findall(r"\]\(\s*<?([^)\s>]+)", prose) + re.findall(r"(?:src|href)=\"([^\"]+)\"", prose):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{link} leads nowhere"
        assert target.is_relative_to(ROOT), f"{link} leads out of the repository"
        assert not anchor or anchor in anchors(target), f"{path or document.name} has no heading {anchor}"


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def missing(code: str) -> Iterator[str]:
    """Paths of the repository, and modules to run, that code names and that are not there."""
    for path in PATH.findall(code):
        if not any(ROOT.glob(path.rstrip("./"))):
            yield path
    for module in re.findall(r"python3? -m ([\w.]*\w)", code):
        file = ROOT / module.replace(".", "/")
        file = file / "__main__.py" if file.is_dir() else file.with_suffix(".py")
        ours = module.split(".")[0] in PACKAGES and not module.split(".")[-1].isupper()
        if ours and not (file.is_file() and "__main__" in file.name + file.read_text()):
            yield f"python -m {module}"


@every_document
def test_every_path_and_every_program_is_there(document):
    assert [name for code in code_of(document.read_text()) for name in missing(code)] == []


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """The options of each verb, as its help lists them."""
    found = {}
    for verb in VERBS:
        printed = io.StringIO()
        with redirect_stdout(printed), pytest.raises(SystemExit):
            main([verb, "--help-all"])
        found[verb] = {"--help", "--help-all"} | set(re.findall(r"^  (--[\w.-]+)", printed.getvalue(), re.MULTILINE))
    return found


@every_document
def test_every_verb_takes_every_option_it_is_given(document, options):
    def takes(verb: str, option: str) -> bool:
        name = option.replace("_", "-")
        return name in options[verb] or (name.startswith("--sweep.") and "--" + name[8:] in options[verb])

    for code in code_of(document.read_text()):
        command = re.search(r"(?:^|\s)ortho (?!help |completion )([a-z][a-z-]*\b.*)", code)
        verb = None
        for word in command[1].split() if command else ():
            if word in VERBS:  # the first one, or the one that `submit` runs
                verb = word
            assert verb, f"{code}: {word} is no verb"
            option = re.match(r"--[\w.-]+", word)
            assert not option or takes(verb, option[0]), f"{code}: {verb} takes no {word}"
        if code.startswith("--"):
            option = re.match(r"--[\w.-]+", code)[0]
            assert option in OTHERS or any(takes(verb, option) for verb in VERBS), f"no verb takes {option}"


def exists(name: str) -> bool:
    """Whether a dotted name is a module of the repository, or something in one."""
    parts = name.split(".")
    for depth in range(len(parts), 0, -1):
        folder = ROOT.joinpath(*parts[:depth])
        if folder.with_suffix(".py").is_file() or (folder / "__init__.py").is_file():
            found = importlib.import_module(".".join(parts[:depth]))
            for attribute in parts[depth:]:
                found = getattr(found, attribute, None)
            return found is not None
    return False


def test_what_comments_and_docstrings_name_is_there():
    absent = []
    for file in sorted(path for folder in (*PACKAGES, "tests") for path in (ROOT / folder).rglob("*.py")):
        for code in re.findall(r"`([^`\n]+)`", file.read_text()):
            names = list(missing(code))
            if re.fullmatch(rf"(?:{'|'.join((*PACKAGES, 'tests'))})(?:\.\w+)+", code) and not exists(code):
                names.append(code)
            absent += [f"{file.relative_to(ROOT)}: {name}" for name in names]
    assert absent == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "results").glob("[!i]*.md")), ids=lambda path: path.stem)
def test_a_page_of_results_answers_a_question_and_says_last_how_to_repeat_it(page):
    title, _, answer, *_ = (text := page.read_text()).splitlines()
    assert re.fullmatch(r"# .+\?", title)
    headings = re.findall(r"^## (.+)$", FENCE.sub("", text), re.MULTILINE)
    assert headings[-1] == "How to repeat it"
    index = (page.parent / "index.md").read_text()
    assert f"| [{title[2:]}]({page.name}) | {answer} |" in index
