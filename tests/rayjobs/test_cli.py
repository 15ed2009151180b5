"""The command: its exit codes, what it says of itself, and what it only describes."""

import runpy
import sys

import pytest
import yaml

from rayjobs.cli import main
from rayjobs.verb.table import VERBS


def test_without_a_verb_and_with_help_it_lists_them(capsys):
    assert main([]) == 1
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {verb}" in text for verb in VERBS)


def help_of(capsys, monkeypatch, module: str, *words: str) -> str:
    """What `python -m MODULE WORDS --help` prints, in this process."""
    monkeypatch.setattr(sys, "argv", ["python -m", *words, "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_its_options(verb, capsys, monkeypatch):
    text = help_of(capsys, monkeypatch, "rayjobs", verb)
    assert text.startswith(f"usage: ortho {verb} ")
    assert "--out" in text or "--work-dir" in text


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # a module that is imported already
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in {"export", "import"}])
def test_the_module_of_a_verb_is_the_verb(verb, capsys, monkeypatch):
    text = help_of(capsys, monkeypatch, f"rayjobs.{verb.replace('-', '_')}")
    assert text.startswith(f"usage: ortho {verb} ")


def test_faults_are_one_line_and_exit_code_1(capsys, tmp_path):
    for argv in (
        ["asign"],
        ["assign", "--step", "3"],
        ["generate", "--model", str(tmp_path), "--prompt", "x", "--out", "y"],
    ):
        assert main(argv) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"ortho {argv[0]}: ")
        assert error.count("\n") == 1


def test_dry_run_and_print_config_are_yaml_and_write_nothing(capsys, digits, tiny_turbo, tmp_path):
    argv = ["em", "--pairs", str(digits), "--model", str(tiny_turbo), "--work-dir", str(tmp_path / "out")]
    assert main([*argv, "--dry-run"]) == 0
    said = yaml.safe_load(capsys.readouterr().out)
    # A twentieth of the 512 pairs is held out; four cycles, four evaluations of an image in each E-step.
    assert (said["rows"], said["evaluations_of_the_e_steps"]) == (486, 4 * 486 * 4)
    argv += ["--assign.workers", "2:8", "--assign.node-labels", "zone=a,disk=ssd"]
    assert main([*argv, "--print-config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["assign"]["patch_size"], config["assign"]["workers"]) == (2, "2:8")
    assert config["assign"]["node_labels"] == {"zone": "a", "disk": "ssd"}
    for workers in ("0:2", "3:2", "many"):
        assert main([*argv, "--assign.workers", workers]) == 1
        assert "a number of workers, LEAST:MOST, or 0 to work in the command's own process" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_training_can_be_described_without_being_done(capsys, assigned, tiny_turbo, tmp_path):
    argv = ["train", "--assignments", str(assigned[1]), "--model", str(tiny_turbo), "--out", str(tmp_path / "out")]
    argv += ["--lora-targets", "to_q,to_k", "--lora-rank", "2", "--epochs", "3", "--batch-size", "12"]
    assert main([*argv, "--dry-run"]) == 0
    said = yaml.safe_load(capsys.readouterr().out)
    assert (said["rows"], said["updates"], said["config"]["lora_targets"]) == (24, 6, ["to_q", "to_k"])
    assert main([*argv, "--print-config"]) == 0
    (tmp_path / "job.yaml").write_text(capsys.readouterr().out)
    assert main(["train", "--config", str(tmp_path / "job.yaml"), "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == said
    assert main([*argv, "--batch-size", "7", "--num-workers", "2", "--dry-run"]) == 1
    assert capsys.readouterr().err == "ortho train: --batch-size: 7 does not divide among 2 workers\n"
    assert not (tmp_path / "out").exists()
