"""Each recipe runs as it is, and the notebook has their steps."""

import json
import re
import subprocess
import sys

import pytest
import torch

import ortho_core
from tests.conftest import ROOT
from tests.recipes.notebook import NOTEBOOK, RECIPES, execute, sources


@pytest.fixture
def run(tmp_path, monkeypatch, generator):
    """Runs the notebook's cells of a recipe, in a folder that has what a checkout has; the names that they leave."""
    # `generator` has diffusers imported, which takes longer than any recipe.
    for name in ("models", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    def cells(recipe):
        names = {"__name__": "__main__"}
        shown = [execute(source, names) for source in cells_of_notebook()[recipe]]
        assert "PIL" in type(shown[-1][1]).__module__
        return names, "".join(printed for printed, _ in shown)

    return cells


def cells_of_notebook():
    """The notebook's cells of code by recipe."""
    found, recipes = {}, iter(RECIPES)
    for cell in json.loads(NOTEBOOK.read_text())["cells"][2:]:
        if cell["cell_type"] == "markdown":
            name = next(recipes)
            found[name] = []
        else:
            found[name].append("".join(cell["source"]))
    return found


def test_one_image_is_matched(run, tmp_path):
    names, printed = run("match_one_image")
    assert float(names["assigned"].loss) < 0.8 * float(names["assigned"].initial_loss)
    assert "1 image," in printed
    assert (tmp_path / "runs/match_one_image.png").is_file()


def test_a_folder_is_matched_and_trained_on(run, tmp_path):
    names, printed = run("match_and_fine_tune")
    assert float(names["assigned"].loss.mean()) < 0.7 * float(names["assigned"].initial_loss.mean())
    assert names["outcome"].terms.latent < float(names["assigned"].loss.mean())
    assert "update 20: loss" in printed
    saved = ortho_core.load_generator(tmp_path / "runs/fine-tuned")
    torch.testing.assert_close(
        ortho_core.generate_images(saved, names["pairs"].prompts[:8]), names["after"], rtol=0, atol=1e-5
    )


def test_a_reward_of_ones_own_rises(run):
    names, _ = run("own_reward")
    found = names["found"]
    assert (found.terms["left_half"] > found.initial_terms["left_half"] + 0.01).all()


def test_a_generator_of_ones_own_learns(run):
    names, printed = run("own_generator")
    assert names["losses"][-1] < 0.2
    assert "cycle 2: M-step" in printed


def test_models_are_sampled_and_compared(run, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/fine-tuned").symlink_to(ROOT / "models/tiny-turbo")
    names, printed = run("sample_and_compare")
    assert torch.equal(names["samples"]["start"], names["samples"]["fine-tuned"])
    assert [line.split(":")[0] for line in printed.splitlines()] == ["start", "fine-tuned"]


def test_the_notebook_is_the_recipes_with_their_outputs():
    notebook = json.loads(NOTEBOOK.read_text())
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]] == sources(), (
        "a recipe has changed: python -m tests.recipes.notebook"
    )
    assert (notebook["nbformat"], NOTEBOOK.stat().st_size < 500_000) == (4, True)
    ran = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in ran] == list(range(1, len(ran) + 1))
    pictures = sum("image/png" in output.get("data", {}) for cell in ran for output in cell["outputs"])
    assert pictures == len(RECIPES)


def test_recipes_are_short_use_public_names_and_have_a_line_for_your_own_data():
    assert {file.stem for file in (ROOT / "recipes").glob("*.py")} == {*RECIPES}
    for file in (ROOT / "recipes").glob("*.py"):
        text = file.read_text()
        assert text.count("\n") <= 50, file.name
        assert "# Your own" in text, file.name
        assert "from ortho_core." not in text, file.name


def test_the_library_is_listed_documented_and_quick_to_import():
    modules = ortho_core._MODULES
    assert sorted([*modules, "__version__"]) == sorted(ortho_core.__all__)
    assert {*ortho_core.__all__} <= {*dir(ortho_core)}
    for name in modules:
        public = getattr(ortho_core, name)
        assert public.__doc__, f"{name} has no docstring"
        assert public.__module__ == f"ortho_core.{modules[name]}", f"{name} is listed in another module"
    with pytest.raises(AttributeError, match="'ortho_core' has no attribute 'nothing'"):
        _ = ortho_core.nothing
    code = "import sys, ortho_core; sys.exit(bool({'torch', 'pydantic', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("page", ["README.md", "docs/reference/python.md"])
def test_the_python_that_a_page_shows_runs(page, tmp_path, monkeypatch, generator):
    for name in ("models", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    (block,) = (
        code
        for code in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
        if "from ortho_core import" in code
    )
    exec(block, names := {})
    assert names["images" if "images" in names else "image"].min() >= 0
