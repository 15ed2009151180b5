"""The hook of the documentation's site: links out of docs/, tables of options, and that no error message is left out."""

import ast
import importlib.util
import re
from types import SimpleNamespace

import pytest

import ortho_core
from rayjobs.verb.table import VERBS
from tests.conftest import ROOT

TROUBLESHOOTING = (ROOT / "docs" / "guides" / "troubleshooting.md").read_text()


@pytest.fixture(scope="module")
def site():
    """The hook, loaded as mkdocs loads it."""
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("site_hook", ROOT / ".ci" / "site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("repository", "becomes"),
    [
        ("https://host/ortho", "[card](https://host/ortho/blob/main/models/README.md)"),
        ("", "card (`models/README.md`)"),
    ],
)
def test_a_link_out_of_docs_leads_to_the_repository_or_names_the_path(site, repository, becomes):
    page, config = SimpleNamespace(file=SimpleNamespace(src_uri="start/x.md")), SimpleNamespace(repo_url=repository)
    text = "see [card](../../models/README.md#a) and [other](../index.md#b) and [web](https://a.b/)"
    shown = site.on_page_markdown(text, page, config, None)
    assert shown == f"see {becomes} and [other](../index.md#b) and [web](https://a.b/)"


def test_every_option_is_in_the_tables_with_what_it_does(site):
    page = site.verbs()
    assert re.findall(r"^## `ortho ([\w-]+)`$", page, re.MULTILINE) == [*VERBS]
    options = re.findall(r"^ {2}(--[\w.-]+)", site.printed("em"), re.MULTILINE)
    part = page[page.index("## `ortho em`") : page.index("## `ortho sweep`")]
    assert [option for option in options if f"| `{option}" not in part] == []
    assert "| `--pairs PATH` | pair set: a folder of images with captions, or files of rows" in part


def test_every_module_that_raises_a_message_is_of_a_part_of_the_page(site):
    parts = [part.split() for part in site.MESSAGES.findall(TROUBLESHOOTING)]
    raising = site.messages()
    assert sum(map(len, raising.values())) > 300
    said = site.by_part(parts)
    assert all(said.values()), "a part of the page has no message"
    for place in (place for part in parts for place in part):
        assert any(f"{module}/".startswith(f"{place}/") for module in raising), f"{place} raises nothing"
    with pytest.raises(KeyError, match="no part of the troubleshooting page"):
        site.by_part(parts[1:])


def test_every_message_that_the_page_explains_is_one_of_the_code():
    texts = []
    for file in (path for package in ("ortho_core", "rayjobs") for path in (ROOT / package).rglob("*.py")):
        texts += [node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)]
    code = "\n".join(text for text in texts if isinstance(text, str))
    rows = re.findall(r"^\| `([^`]+)` \|", TROUBLESHOOTING, re.MULTILINE)
    assert len(rows) > 40
    absent = [
        row for row in rows for part in re.split(r"\.\.\.", row) if part.strip() and part.strip(" ;:") not in code
    ]
    assert absent == []


def test_every_public_name_is_on_the_page_of_the_python_api():
    page = (ROOT / "docs" / "reference" / "python.md").read_text()
    shown = set(re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE))
    public = {f"{name.__module__}.{name.__qualname__}" for name in map(ortho_core.__getattr__, ortho_core._MODULES)}
    assert public <= shown
