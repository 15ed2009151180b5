"""The examples of CONTRIBUTING.md, applied to a copy of the packages as they are written, and run."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass

import pytest

from tests.conftest import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()


@dataclass(frozen=True)
class Example:
    """New files by path, the edits of existing ones as lines of a diff, and the command that tries it."""

    files: dict[str, str]
    edits: dict[str, list[str]]
    command: list[str]


def example(title: str) -> Example:
    section = TEXT.split(f"### {title}\n")[1].split("\n### ")[0]
    blocks = re.findall(r"```(\w*)\n(.*?)```", section, re.DOTALL)
    files = {
        text.split("\n", 1)[0].removeprefix("# "): text.split("\n", 1)[1] for kind, text in blocks if kind == "python"
    }
    diffs = [text.splitlines() for kind, text in blocks if kind == "diff"]
    (command,) = (text for kind, text in blocks if kind == "sh")
    return Example(files, {lines[0].removeprefix("--- "): lines[1:] for lines in diffs}, shlex.split(command))


def edited(text: str, diff: list[str]) -> str:
    """`diff` has lines to find (" "), to replace ("-", followed by "+") and to add after the one before ("+")."""
    lines, at = text.splitlines(), 0
    for line in diff:
        if line[0] == "+":
            lines.insert(at, line[1:])
            at += 1
        else:
            at = lines.index(line[1:])
            at += line[0] == " "
            if line[0] == "-":
                del lines[at]
    return "\n".join(lines) + "\n"


@pytest.fixture
def copied(tmp_path):
    """A copy of both packages, without what they compiled."""
    for package in ("ortho_core", "rayjobs"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run(example: Example, folder) -> str:
    for name, text in example.files.items():
        (folder / name).write_text(text)
    for name, diff in example.edits.items():
        (folder / name).write_text(edited((folder / name).read_text(), diff))
    assert len(example.files) + len(example.edits) <= 2, "more files to touch than CONTRIBUTING.md promises"
    arguments = [str(ROOT / word) if word.startswith("models/") else word for word in example.command[1:]]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "rayjobs", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_reward_of_ones_own_is_raised(copied):
    run(example("A reward"), copied)
    meta = json.loads((copied / "runs" / "redness" / "meta.json").read_text())
    redness = meta["rewards"]["redness"]
    assert redness["after"] > redness["before"] + 0.01


def test_a_verb_of_ones_own_runs(copied):
    said = run(example("A verb"), copied)
    assert "kind: StableDiffusionXLPipeline" in said
    assert "latent_shape: [4, 8, 8]" in said
