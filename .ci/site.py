"""What the site of docs/ has beyond the pages as they are written: links that lead out of docs/, and every verb's options.

A hook of mkdocs (mkdocs.yml). A warning ends a strict build.
"""

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
FENCE = re.compile(r"(^ *```.*?^ *```)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[((?:[^\[\]`]|`[^`]*`)*)\]\(([^)\s]+)\)")
log = get_plugin_logger("site")


def on_startup(command: str, dirty: bool) -> None:
    """The packages of this checkout come first, whatever is installed."""
    sys.path.insert(0, str(ROOT))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page's text, with outside links led to the repository and the list of options filled in."""
    markdown = markdown.replace(MARKER, verbs()) if MARKER in markdown else markdown
    folder = ROOT / "docs" / Path(page.file.src_uri).parent
    parts = FENCE.split(markdown)
    return "".join(
        part if i % 2 else LINK.sub(lambda m: outside(m, folder, page, config.repo_url or ""), part)
        for i, part in enumerate(parts)
    )


def outside(link: re.Match[str], folder: Path, page: Page, repository: str) -> str:
    """A link to a file beside docs/ as one to the repository; where its address is not known, as the file's path."""
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
    """What `--help-all` of a verb prints."""
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
    """Options with what they do, lines that were wrapped joined."""
    found: list[tuple[str, str]] = []
    for line in lines:
        if line.startswith("  -"):
            name, _, what = line.strip().partition("  ")
            found.append((name, what.strip()))
        else:
            name, what = found.pop()
            found.append((name, f"{what} {line.strip()}".strip()))
    return found


def cell(text: str) -> str:
    """Text that may stand in a table's cell."""
    return text.replace("|", "\\|").replace("<", "&lt;")
