"""The image: what its file says, and its steps run in a clean environment (no container runtime is needed)."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.conftest import ROOT

TINY_CLIP = "ortho_core/evaluation/tiny-clip/model.safetensors"
DOCKERFILE = ROOT / "cluster" / "docker" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """The file as (instruction, rest of the line), continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", DOCKERFILE.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name.upper(), rest) for name, _, rest in (line.partition(" ") for line in lines)]


def sent(folder: Path) -> Path:
    """The build context: what .dockerignore lets through of this checkout, by its two rules `*` and `!NAME`."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    assert rules[-1] == "**/__pycache__"
    for rule in rules[1:-1]:
        assert rule.startswith("!")
        source = ROOT / rule[1:]
        if source.is_dir():
            shutil.copytree(source, folder / rule[1:], ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / rule[1:]).parent.mkdir(exist_ok=True)
            shutil.copy(source, folder / rule[1:])
    return folder


def test_it_is_built_in_two_stages_on_the_locked_ray_and_does_not_run_as_root():
    said = instructions()
    ray = re.search(r"^ray==([\d.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)[1]
    assert version("ray") == ray
    assert [rest.split()[0] for name, rest in said if name == "FROM"] == [f"rayproject/ray:{ray}-py311-gpu"] * 2
    assert [rest for name, rest in said if name == "USER"][-1] == "1000:100"
    assert sum("--require-hashes --requirement requirements.lock" in rest for _, rest in said) == 1
    copied = [rest for name, rest in said if name == "COPY" and not rest.startswith("--from")]
    assert not any("." in rest.split()[:-1] for rest in copied)


def test_nothing_is_sent_to_the_build_that_it_does_not_copy_and_no_weights_but_the_judges(tmp_path):
    context = sent(tmp_path)
    copied = {word for name, rest in instructions() if name == "COPY" for word in rest.split()[:-1]}
    assert {path.name for path in context.iterdir()} <= copied
    weights = [path for path in context.rglob("*") if path.suffix in {".safetensors", ".pt", ".bin", ".pyc"}]
    assert [str(path.relative_to(context)) for path in weights] == [TINY_CLIP]
    assert sum(path.stat().st_size for path in context.rglob("*") if path.is_file()) < 6e6


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_its_steps_make_an_environment_that_runs(tmp_path, tiny_turbo, digits):
    """The first stage, with /opt/ortho and /build elsewhere, and of the environment only what finds packages."""
    (tmp_path / "context").mkdir()
    context = sent(tmp_path / "context")
    build, environment = tmp_path / "build", tmp_path / "ortho"
    build.mkdir()
    python = Path(sys.base_prefix) / "bin"
    network = re.compile(r"(PIP|UV|SSL)_.*|\w+_proxy", re.IGNORECASE)
    kept = {name: value for name, value in os.environ.items() if network.fullmatch(name)}
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(python / "python3.11")
    env = {**kept, "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    for name, rest in instructions()[1:]:
        if name == "FROM":
            break
        if name == "COPY":
            *sources, target = rest.split()
            for source in sources:
                where = context / source
                shutil.copytree(where, build / target) if where.is_dir() else shutil.copy(where, build / target)
        elif name == "RUN":
            # The cache of the package installer is this machine's; in a build it would be thrown away.
            command = rest.replace("/opt/ortho", str(environment)).replace(" --no-cache ", " ")
            subprocess.run(command, shell=True, cwd=build, env=env, check=True)
    shutil.rmtree(build)
    env = {"PATH": f"{environment / 'bin'}:/usr/bin:/bin", "HOME": str(tmp_path)}
    em = [
        "ortho",
        "em",
        "--pairs",
        str(digits),
        "--model",
        str(tiny_turbo),
        "--work-dir",
        str(tmp_path / "w"),
        "--dry-run",
    ]
    for command, expected in [
        (em, "rows: 512"),
        (["ray", "--version"], version("ray")),
        (["ortho", "--help"], "assign"),
    ]:
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        assert expected in done.stdout
    where = "import ortho_core, rayjobs; print(ortho_core.__file__, rayjobs.__file__)"
    done = subprocess.run(["python", "-c", where], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert all(path.startswith(str(environment)) for path in done.stdout.split())
    for file in ("ortho_core/report/page.html.j2", "rayjobs/download/catalog.toml", TINY_CLIP):
        assert (environment / "lib/python3.11/site-packages" / file).is_file()
