"""What is built of this checkout for others to install."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from ortho_core import __version__
from ortho_core.errors import DISTRIBUTION, install
from tests.conftest import ROOT

PACKAGES = ("ortho_core", "rayjobs")
#: What is no code and belongs to it.
DATA = {
    "ortho_core/py.typed",
    "ortho_core/report/page.html.j2",
    *(f"ortho_core/evaluation/tiny-clip/{name}" for name in ("README.md", "config.json", "model.safetensors")),
    *(
        f"ortho_core/evaluation/tiny-clip/{name}.json"
        for name in ("preprocessor_config", "tokenizer", "tokenizer_config")
    ),
    "rayjobs/py.typed",
    "rayjobs/download/catalog.toml",
    *(str(file.relative_to(ROOT)) for file in (ROOT / "ortho_core/generators/families").rglob("*") if file.is_file()),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the wheel and the source distribution, made by setuptools alone of a copy of the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for folder in (*PACKAGES, "tests", "examples/digits"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    code = f"from setuptools import build_meta as b; b.build_wheel({str(out)!r}); b.build_sdist({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_the_wheel_holds_the_code_what_the_code_reads_and_nothing_else(built):
    (file,) = built.glob("*.whl")
    with zipfile.ZipFile(file) as wheel:
        names = {name for name in wheel.namelist() if not name.startswith("ortho_em-")}
        about = Parser().parsestr(wheel.read(f"ortho_em-{__version__}.dist-info/METADATA").decode())
        entries = wheel.read(f"ortho_em-{__version__}.dist-info/entry_points.txt").decode()
    code = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert names == code | DATA
    assert (about["Name"], about["Version"]) == (DISTRIBUTION, __version__)
    assert "ortho = rayjobs.__main__:main" in entries


def test_the_source_distribution_holds_no_examples_and_no_tests(built):
    (file,) = built.glob("*.tar.gz")
    assert file.stat().st_size < 4e6
    with tarfile.open(file) as archive:
        names = [Path(name).parts for name in archive.getnames()]
    assert {parts[1] for parts in names if len(parts) > 2} == {*PACKAGES, "ortho_em.egg-info"}


def test_every_extra_that_is_named_is_one_of_this_distribution(built):
    (file,) = built.glob("*.whl")
    with zipfile.ZipFile(file) as wheel:
        about = Parser().parsestr(wheel.read(f"ortho_em-{__version__}.dist-info/METADATA").decode())
    extras = set(about.get_all("Provides-Extra"))
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    text = "\n".join(path.read_text() for path in [*files, *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    named = re.findall(r"\binstall\('(\w+)'\)", text) + re.findall(rf"{DISTRIBUTION}\[(\w+)\]", text)
    assert {"rewards", "lpips", "optuna", "s3"} <= set(named) <= extras
    assert install("s3") == "pip install 'ortho-em[s3]'"
    # `ortho` itself is another project.
    assert not re.findall(r"\bortho\[\w", text)
