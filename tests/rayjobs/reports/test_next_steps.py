"""The last lines of commands: the next command in them is one."""

import json
import shlex
from pathlib import Path

import pytest

from rayjobs.cli import main
from rayjobs.reports.next_steps import beside
from rayjobs.verb.options import parse
from rayjobs.verb.table import VERBS


def said(verb, argv, code=0):
    return VERBS[verb].ending(parse(VERBS[verb].model(), argv, verb).job, code)


def commands(lines):
    return [shlex.split(line.removeprefix("next: ortho ")) for line in lines if line.startswith("next: ")]


@pytest.fixture
def summaries(tmp_path):
    """A folder with what finished runs leave."""
    counts = {"assigned": 9, "quarantined": 1}
    for name, content in (
        ("summary.json", counts),
        (
            "em_summary.json",
            {
                "model": str(tmp_path / "cycle_04"),
                "cycles": [],
                "evaluation": None,
                "seconds_this_run": 1.0,
                "config": {},
            },
        ),
    ):
        (tmp_path / name).write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize("model", ["m", "adapter"])
@pytest.mark.parametrize(
    ("verb", "argv"),
    [
        ("assign", "--pairs p --model {model} --lora a.safetensors:0.5,b --out {out}"),
        ("reward", "--model {model} --lora a.safetensors:0.5,b --reward clip --prompts p.txt --out {out}"),
    ],
)
def test_what_a_lora_found_trains_on_the_folder_that_it_is_merged_into(
    verb, argv, model, summaries, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "lora.json").write_text("{}")
    lines = said(verb, argv.format(out=summaries, model=model).split())
    assert lines[-1].startswith("then: ortho train ")
    convert, train = (shlex.split(line.partition("ortho ")[2]) for line in lines[-2:])
    assert ("--merge" in convert) == (model == "adapter")
    assert convert[convert.index("--lora") + 1] == "a.safetensors:0.5,b:1"
    assert convert[convert.index("--out") + 1] == train[train.index("--model") + 1]
    for command in (convert, train):
        assert main([*command, "--print-config"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("verb", "argv", "follows"),
    [
        ("assign", "--pairs p --model m --out {out}", "train"),
        ("reward", "--model m --reward clip --prompts p.txt --out {out}", "train"),
        ("import", "--samples s --model m --out {out}", "train"),
        ("train", "--assignments a --model m --out {out}", "generate"),
        ("em", "--pairs p --model m --work-dir {out}", "generate"),
        ("look", "photos", "em"),
    ],
)
def test_what_follows_a_verb_is_a_command_that_is_accepted(verb, argv, follows, summaries, capsys):
    (command,) = commands(said(verb, argv.format(out=summaries).split()))
    assert command[0] == follows
    assert main([*command, "--print-config"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("verb", "argv", "again"),
    [
        ("assign", "--pairs p --model m --out {out}", True),
        ("import", "--samples s --model m --out {out}", False),
    ],
)
def test_rows_that_were_left_out_are_counted_and_what_helps_is_said(verb, argv, again, summaries):
    plain, with_some = (said(verb, argv.format(out=summaries).split(), code) for code in (0, 3))
    (told,) = [line for line in with_some if line not in plain]
    assert told.startswith(f"1 row left out: {summaries}/failures.jsonl has the reasons")
    assert ("--retry-failures" in told) == again


def test_one_prompt_and_verbs_that_say_it_themselves_add_nothing():
    assert said("reward", ["--model", "m", "--reward", "clip", "--prompt", "x", "--out", "o"]) == []
    assert said("generate", ["--model", "m", "--prompt", "x", "--out", "o"]) == []


def test_what_is_made_next_lies_beside():
    assert beside("runs/a/", "trained") == "runs/trained"
    assert beside("s3://bucket/a", "trained") == "s3://bucket/trained"
    assert beside("a", "trained") == "trained"
    assert beside(str(Path("/a")), "b") == "/b"
