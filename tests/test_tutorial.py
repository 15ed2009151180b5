"""The tutorial's commands: all of them parse, and in an empty folder they make what the page shows."""

import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from benchmarks import tutorial
from models.recipes.leaning import write_leaning
from ortho_core.generators.class_conditional import ClassGenerator, ClassNetwork
from ortho_core.generators.class_config import ClassConfig
from rayjobs.cli import main
from tests.chromium import check_source
from tests.conftest import ROOT

PAGE = tutorial.PAGE.read_text()
COMMANDS = [shlex.split(block.replace("\\\n", " ")) for block in tutorial.commands(PAGE)]
FIGURES = json.loads(tutorial.FIGURES.read_text())
FENCE = re.compile(r"```\n.*?```", re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the reader is, as far as the commands can tell."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dry(argv, capsys):
    assert main([*argv[1:], "--dry-run"]) == 0, capsys.readouterr().err
    return yaml.safe_load(capsys.readouterr().out)


def test_every_command_of_the_page_parses_and_no_option_is_made_up(capsys):
    assert [argv[1] for argv in COMMANDS] == ["train-gan", "invert", "em", "generate", "sweep"]
    accepted = set()
    for argv in COMMANDS:
        assert main([*argv[1:], "--print-config"]) == 0, capsys.readouterr().err
        accepted |= options(yaml.safe_load(capsys.readouterr().out))
    prose = FENCE.sub("", PAGE)
    assert set(re.findall(r"--[a-z][a-z.-]+", prose)) - {"--help"} <= accepted


def options(config, prefix="--"):
    """What a printed configuration's fields are called on the command line."""
    own = {prefix + name.replace("_", "-") for name in config}
    nested = {name: value for name, value in config.items() if isinstance(value, dict)}
    return own.union(*(options(value, f"{prefix}{name.replace('_', '-')}.") for name, value in nested.items()))


def test_every_command_finds_what_the_ones_before_it_leave(folder, capsys):
    said = dry(COMMANDS[0], capsys)
    assert (said["rows"], said["bad_rows"], said["out"]) == (6000, 0, "runs/tutorial/generator")
    config = ClassConfig(**said["generator"])
    network = ClassNetwork(config).requires_grad_(False).eval()
    ClassGenerator(config, network).save(folder / said["out"] / "checkpoint-final")
    assert dry(COMMANDS[1], capsys)["evaluations"] == 12
    said = dry(COMMANDS[2], capsys)
    assert (said["rows"], said["evaluations_of_the_e_steps"]) == (256, 4 * 256 * 4)
    ClassGenerator(config, network).save(folder / said["work_dir"] / "cycle_04" / "train" / "checkpoint-final")
    assert dry(COMMANDS[3], capsys)["images"] == 16
    dry(COMMANDS[4], capsys)


def test_its_pictures_are_there_and_small():
    shown = re.findall(r"!\[[^]]+\]\(\.\./images/([^)]+)\)", PAGE)
    assert set(tutorial.PICTURES) == set(shown)
    assert all((ROOT / "docs" / "images" / name).stat().st_size < 100_000 for name in shown)


@pytest.mark.parametrize(("name", "first", "rows"), [("pairs", 0, 256), ("heldout", 256, 128)])
def test_the_leaning_pairs_are_those_of_the_recipe(name, first, rows, tmp_path):
    picture = tmp_path / "first.png"
    write_leaning("mnist", str(ROOT / "examples" / "mnist"), "test", first, rows, tmp_path / "made.parquet", picture)
    made, shipped = (
        pq.read_table(file).to_pylist() for file in (tmp_path / "made.parquet", leaning(f"{name}.parquet"))
    )
    assert len(shipped) == rows
    assert [row["prompt"] for row in made] == [row["prompt"] for row in shipped]
    assert all(
        np.array_equal(pixels(ours["image"]), pixels(theirs["image"]))
        for ours, theirs in zip(made, shipped, strict=True)
    )
    if name == "heldout":
        assert np.array_equal(pixels(picture.read_bytes()), pixels(leaning("six.png").read_bytes()))
        assert shipped[0]["prompt"] == "6"


def leaning(name) -> Path:
    return ROOT / "examples" / "leaning" / name


def pixels(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image)


def test_every_figure_of_the_page_is_the_committed_one():
    evaluation = FIGURES["evaluation"]
    table = tutorial.rows(evaluation)
    assert [line for line in PAGE.splitlines() if re.match(r"\| (KID|diversity|latent|drift)", line)] == table
    assert tutorial.outputs(PAGE) == FIGURES["printed"]
    kid = [f"{evaluation[model]['kid']['value']:.0f}" for model in ("base", "cycle_04", "direct")]
    sentence = "It falls from {} to {}; direct fine-tuning ends at {}.".format(*kid)
    assert sentence in PAGE
    # In prose there is no other measured figure.
    prose = FENCE.sub("", PAGE).replace(sentence, "")
    for line in table:
        prose = prose.replace(line, "")
    assert re.findall(r"\d+\.\d+", prose) == []


def test_the_page_says_what_its_figures_show():
    check_claims(FIGURES["evaluation"])
    minutes = {name: value / 60 for name, value in FIGURES["seconds"].items()}
    assert (round(minutes["train-gan"]), round(2 * minutes["em"]), round(FIGURES["seconds"]["invert"])) == (2, 3, 3)
    for time in ("two minutes. A prompt", "a minute and a half. It runs", "three seconds, most of them start-up"):
        assert f"This takes {time}" in PAGE


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_commands_make_what_the_page_shows(tmp_path):
    made = tutorial.run(tmp_path)
    assert [without_numbers(line) for line in made["printed"]] == [without_numbers(line) for line in FIGURES["printed"]]
    for ours, theirs in tutorial.PICTURES.items():
        with (
            Image.open(ROOT / "docs" / "images" / ours) as shown,
            Image.open(tmp_path / "runs" / "tutorial" / theirs) as picture,
        ):
            assert picture.size == shown.size
    report = tmp_path / "runs" / "tutorial" / "em" / "report.html"
    # Targets and six models, twelve columns, at plain noise (two models at another, too) and closest; the Gaussian check.
    assert check_source(report) == (9 + 7) * 12 + 2
    assert "Is the noise still Gaussian?" in report.read_text()
    check_claims(made["evaluation"])
    # Another processor gives other figures, but not far from these.
    for model, metrics in made["evaluation"].items():
        for _, metric, _ in tutorial.ROWS:
            if metric in metrics:
                shown = FIGURES["evaluation"][model][metric]["value"]
                assert metrics[metric]["value"] == pytest.approx(shown, rel=0.3), (model, metric)


def without_numbers(text):
    return re.sub(r"\d+(\.\d+)?", "#", text)


def check_claims(evaluation):
    """What the page says of its figures."""
    assert tuple(evaluation) == ("base", "direct", "cycle_01", "cycle_02", "cycle_03", "cycle_04")
    mse, kid, diversity = (
        {model: evaluation[model][name]["value"] for model in evaluation} for name in ("latent_mse", "kid", "diversity")
    )
    assert mse["cycle_04"] < mse["cycle_01"] < mse["base"]
    assert mse["base"] < mse["direct"]
    assert kid["cycle_04"] < 0.5 * kid["base"]
    assert kid["cycle_04"] < 0.5 * kid["direct"]
    assert diversity["direct"] < 0.3 * diversity["base"] < diversity["cycle_04"]
