"""Rules of the house that imports and text can be checked for."""

import ast
import json
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict

import pytest

from benchmarks.house import figures
from rayjobs.verb.table import VERBS
from tests.conftest import ROOT

LINT = ["ruff", "check", "--output-format", "concise", "--stdin-filename", "ortho_core/some.py", "-"]


def test_undefined_names_and_prints_are_found_in_the_core_between_shape_annotations():
    code = (
        '"""Shapes."""\n\nfrom jaxtyping import Float\nfrom torch import Tensor\n\n\n'
        'def shapes(x: Float[Tensor, "B C H W"], y: Float[Tensor, " B"]) -> Float[Tensor, " B"]:\n    return {}\n'
    )
    for value, fault in (("x.sum((1, 2, 3)) + y", ""), ("undefined(x)", "F821"), ("print(x)", "T201")):
        done = subprocess.run(
            [sys.executable, "-m", *LINT],
            input=code.format(value),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, fault in done.stdout) == (int(bool(fault)), True), done.stdout
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert settings["mypy"]["strict"]
    assert "disable_error_code" not in settings["mypy"]


def test_large_files_and_private_paths_are_found(tmp_path):
    (tmp_path / "large").write_bytes(bytes(2 << 20))
    (tmp_path / "private").write_text(f"fine\n/{'home'}/someone/models\n")
    (tmp_path / "clean").write_text("/home/ray/.bashrc ~/models /srv/home\n")
    check = [sys.executable, str(ROOT / ".ci" / "check_files.py")]
    done = subprocess.run([*check, "clean"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [*check, "clean", "large", "private"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert [line.partition(" ")[0] for line in done.stderr.splitlines()] == ["large:", "private:2:"]


def test_checking_a_job_does_not_import_diffusers(tiny_turbo, digits, tmp_path):
    job = ["--model", str(tiny_turbo), "--pairs", str(digits), "--dry-run"]
    commands = [["em", *job, "--work-dir", str(tmp_path / "em")]]
    commands += [
        [
            "sweep",
            *job,
            "--work-dir",
            str(tmp_path / "sweep"),
            "--heldout",
            str(digits / "heldout.jsonl"),
            "--sweep.train.lr",
            "1e-4,2e-4",
        ]
    ]
    commands += [["evaluate", *job, "--out", str(tmp_path / "evaluate")]]
    program = """
import json, sys
from rayjobs.cli import main

for command in json.loads(sys.argv[1]):
    try:
        assert main(command) == 0, command
    except SystemExit as stop:
        assert stop.code == 0, command
    heavy = {"diffusers", "transformers"} & sys.modules.keys()
    assert not heavy, f"ortho {' '.join(command)} imports {heavy}"
"""
    argv = [sys.executable, "-W", "ignore", "-c", program, json.dumps(commands)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


#: Tests of a whole verb under a condition; no one module stands for them.
WHOLE_VERB = {
    "rayjobs/assign/test_faults.py": "processes, disk and input fail while the E-step runs",
    "rayjobs/assign/test_s3.py": "the E-step between buckets of an object store",
    "rayjobs/assign/test_sizes.py": "the E-step over pictures of several shapes",
    "rayjobs/em/test_flows.py": "every verb on flow models",
    "rayjobs/em/test_sizes.py": "all steps over pictures of several shapes",
    "rayjobs/train/test_sizes.py": "an M-step on images of several sizes",
    "rayjobs/test_marks.py": "the marks on the options of every verb, against the plans made from them",
    "rayjobs/train/test_faults.py": "processes, memory and gradients fail while the M-step runs",
    "rayjobs/train/test_lora.py": "an M-step of an adapter, from its configuration to diffusers",
    "rayjobs/train/test_online.py": "an M-step that matches while it trains",
    "rayjobs/train/test_several_workers.py": "several workers against one",
}


@pytest.mark.parametrize("package", ["ortho_core", "rayjobs"])
def test_the_tests_mirror_the_packages(package):
    tests = {str(path.relative_to(ROOT / "tests")) for path in (ROOT / "tests" / package).rglob("test_*.py")}
    modules = [path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py") if not path.name.startswith("__")]
    named = {str(module.with_name(f"test_{module.name}")): module for module in modules}
    whole = {test for test in WHOLE_VERB if test.startswith(package)}
    assert tests - named.keys() == whole, "a test has no module of its name at its path"
    tested = [named[test] for test in tests - whole]
    assert {path.parent for path in modules} == {path.parent for path in tested}, "a folder has no test"
    roots = {path for path in modules if len(path.parts) == 2}
    assert roots <= {*tested}, "a module at the root of a package has no test"


def test_the_lock_names_versions_and_hashes_but_no_address():
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    assert all("--hash=sha256:" in block for block in lock.replace("\\\n", "").splitlines() if "==" in block)


def test_the_structure_stays_as_it_is_measured_to_be(tmp_path):
    counted = figures(ROOT)
    assert counted["import circles"] == counted["`job: Any`"] == counted["subscripts of a plan"] == 0
    assert counted["modules directly in ortho_core/"] <= 8
    assert counted["modules directly in rayjobs/"] <= 8
    assert counted["lines of the longest module"] <= 400
    for package, text in (("ortho_core", "from rayjobs.b import c\n"), ("rayjobs", "from ortho_core.b import c\n")):
        (tmp_path / package).mkdir()
        (tmp_path / package / "b.py").write_text(text + 'plan["rows"]\n')
    counted = figures(tmp_path)
    assert (counted["import circles"], counted["subscripts of a plan"]) == (1, 2)


#: Names that mean the same in each module that has them, whatever their values: what every reward's module states of itself.
PER_MODULE = {"ORIGIN", "WEIGHTS"}


def named_twice(root) -> set[str]:
    """Classes of one name in two modules, and constants of one name with two values."""
    classes, values = Counter(), defaultdict(set)
    for file in (file for package in ("ortho_core", "rayjobs") for file in (root / package).rglob("*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef):
                classes[node.name] += 1
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                values[node.targets[0].id].add(ast.unparse(node.value))
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
                for name, value in zip(node.targets[0].elts, node.value.elts, strict=True):
                    values[name.id].add(ast.unparse(value))
    constants = {name for name, found in values.items() if len(found) > 1 and len(name) > 1 and name.isupper()}
    return {name for name, count in classes.items() if count > 1} | constants - PER_MODULE


def test_a_name_means_one_thing(tmp_path):
    assert named_twice(ROOT) == set()
    for package, text in (
        ("ortho_core", "MOST, FEW = 1, 2\nclass A: pass\n"),
        ("rayjobs", "MOST = 2\nclass A: pass\n"),
    ):
        (tmp_path / package).mkdir()
        (tmp_path / package / "b.py").write_text(text)
    assert named_twice(tmp_path) == {"MOST", "A"}


def reached_by(module: str, seen: set[str]) -> set[str]:
    """The modules of `rayjobs` that a module imports, and that those import, wherever in their text."""
    file = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    if module in seen or not file.is_file():
        return seen
    seen.add(module)
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("rayjobs"):
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                reached_by(name, seen)
    return seen


def test_ray_is_started_in_one_place_whose_verbs_have_local():
    assert [file.name for file in (ROOT / "rayjobs").rglob("*.py") if "ray.init(" in file.read_text()] == ["session.py"]
    starting = {name for name, verb in VERBS.items() if "rayjobs.verb.session" in reached_by(verb.module, set())}
    assert starting - {"submit"} == {name for name, verb in VERBS.items() if verb.ray}  # submit reads options of a pool
