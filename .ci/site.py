"""Adds to the pages of docs/ on the site: links to files outside docs/, every option, every error message.

A hook of mkdocs (mkdocs.yml). In a strict build a warning is an error.
"""

import ast
import io
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent

MARKER = "<!-- Every verb with all of its options: .ci/site.py -->"
#: Errors that end a verb. Errors of single rows are reasons in the quarantine.
KINDS = {"UserError", "RunFailed", "NoPairSet", "OutOfMemory"}
#: Marks a part of the troubleshooting page with the modules of its messages, as paths or beginnings of paths.
MESSAGES = re.compile(r"<!-- messages: ([^>]+) -->")
FENCE = re.compile(r"(^ *```.*?^ *```)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[((?:[^\[\]`]|`[^`]*`)*)\]\(([^)\s]+)\)")
log = get_plugin_logger("site")


def on_startup(command: str, dirty: bool) -> None:
    """Import the packages of this checkout before installed ones."""
    sys.path.insert(0, str(ROOT))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page's text with links outside docs/ changed to the repository, and with the list of options."""
    markdown = markdown.replace(MARKER, verbs()) if MARKER in markdown else markdown
    if parts := [part.split() for part in MESSAGES.findall(markdown)]:
        said = by_part(parts)
        markdown = MESSAGES.sub(lambda m: listed(said[" ".join(m[1].split())]), markdown)
    folder = ROOT / "docs" / Path(page.file.src_uri).parent
    parts = FENCE.split(markdown)
    return "".join(
        part if i % 2 else LINK.sub(lambda m: outside(m, folder, page, config.repo_url or ""), part)
        for i, part in enumerate(parts)
    )


def outside(link: re.Match[str], folder: Path, page: Page, repository: str) -> str:
    """A link to a file outside docs/ as a link to the repository, or as the file's path if the address is not known."""
    text, (href, _, _) = link[1], link[2].partition("#")
    target = (folder / href).resolve()
    if not href or re.match(r"[a-z]+:", href) or target.is_relative_to(ROOT / "docs"):
        return link[0]
    if not target.exists() or not target.is_relative_to(ROOT):
        log.warning(f"{page.file.src_uri}: {href} leads to no file of the repository")
        return link[0]
    path = target.relative_to(ROOT).as_posix()
    if repository:
        return f"[{text}]({repository.rstrip('/')}/{'tree' if target.is_dir() else 'blob'}/main/{path})"
    return text if path in text else f"{text} (`{path}`)"


def verbs() -> str:
    """Every verb as `ortho VERB --help-all` prints it, options in tables."""
    from rayjobs.cli import VERBS

    return "\n\n".join(f"## `ortho {name}`\n\n{tables(printed(name))}" for name in VERBS)


def printed(name: str) -> str:
    """The output of a verb's `--help-all`."""
    from rayjobs.cli import main

    text = io.StringIO()
    try:
        with redirect_stdout(text):
            main([name, "--help-all"])
    except SystemExit:
        pass
    return text.getvalue()


def tables(text: str) -> str:
    """Help as Markdown: a paragraph stays one, a section of options becomes a table."""
    blocks = []
    for block in text.strip().split("\n\n"):
        title, *lines = block.splitlines()
        if title.startswith("usage:"):
            blocks.append(f"`{title.removeprefix('usage: ')}`")
        elif lines and lines[0].startswith("  "):
            rows = [f"| `{cell(name)}` | {cell(what)} |" for name, what in entries(lines)]
            blocks.append("\n".join([f"**{cell(title).rstrip(':')}**", "", "| option | |", "|---|---|", *rows]))
        else:
            blocks.append(" ".join([title, *lines]))
    return "\n\n".join(blocks)


def entries(lines: list[str]) -> list[tuple[str, str]]:
    """The options with their descriptions; wrapped lines are joined."""
    found: list[tuple[str, str]] = []
    for line in lines:
        if line.startswith("  -"):
            name, _, what = line.strip().partition("  ")
            found.append((name, what.strip()))
        else:
            name, what = found.pop()
            found.append((name, f"{what} {line.strip()}".strip()))
    return found


def messages() -> dict[str, list[str]]:
    """The texts of the errors that end a verb, by module; `...` stands for inserted values."""
    found: dict[str, list[str]] = {}
    for file in sorted(path for package in ("ortho_core", "rayjobs") for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            raised = isinstance(node, ast.Call) and getattr(node.func, "id", "") in KINDS
            if raised and node.args:
                found.setdefault(file.relative_to(ROOT).as_posix(), []).append(words(node.args[0]))
    return found


def words(message: ast.expr) -> str:
    """The fixed words of a message; `...` if there are none."""
    if isinstance(message, ast.Constant):
        return str(message.value)
    if isinstance(message, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in message.values)
    return "..."


def by_part(parts: list[list[str]]) -> dict[str, list[str]]:
    """The messages of each part of the page. A module belongs to the part that names the longest beginning of its path.

    Raises KeyError for a module that belongs to no part.
    """
    places = {place: " ".join(part) for part in parts for place in part}
    found: dict[str, list[str]] = {" ".join(part): [] for part in parts}
    for module, said in messages().items():
        of = [place for place in places if module == place or module.startswith(f"{place}/")]
        if not of:
            raise KeyError(f"{module}: no part of the troubleshooting page names it")
        found[places[max(of, key=len)]] += said
    return {part: sorted({text for text in said if re.search(r"\w{3}", text)}) for part, said in found.items()}


def listed(said: list[str]) -> str:
    """Messages, folded up."""
    lines = [f"    - `{text}`" if "`" not in text else f"    - `` {text} ``" for text in said]
    return "\n".join(['??? note "All messages of this part"', "", *lines])


def cell(text: str) -> str:
    """Text escaped for a table cell."""
    return text.replace("|", "\\|").replace("<", "&lt;")
