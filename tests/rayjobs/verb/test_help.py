"""What `--help` and `--help-all` print of every verb."""

import re
import shlex
from contextlib import suppress

import pytest

from rayjobs.cli import main
from rayjobs.verb.help import leaves
from rayjobs.verb.options import Open, Rest
from rayjobs.verb.table import VERBS


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A terminal wide enough that no line of help is broken."""
    monkeypatch.setenv("COLUMNS", "100")


def printed(capsys, *argv):
    with suppress(SystemExit):
        assert main(list(argv)) == 0
    return capsys.readouterr().out


def options_in(text):
    return re.findall(r"^  --([\w.-]+)", text, re.MULTILINE)


@pytest.mark.parametrize("verb", VERBS)
def test_short_help_fits_a_screen_and_begins_with_what_is_required(verb, capsys):
    text = printed(capsys, verb, "--help")
    assert text.count("\n") <= 60
    assert max(map(len, text.splitlines())) <= 130
    fields = dict(leaves(VERBS[verb].model()))
    required = [name for name, field in fields.items() if field.is_required() and not special(field)]
    assert options_in(text)[: len(required)] == [name.replace("_", "-") for name in required]
    assert text.index("example:") < text.index("--config PATH")
    assert printed(capsys, "help", verb) == text


@pytest.mark.parametrize("verb", VERBS)
def test_all_help_has_every_option_once(verb, capsys):
    listed = options_in(printed(capsys, verb, "--help-all"))
    fields = {name: field for name, field in leaves(VERBS[verb].model()) if not special(field)}
    own = [
        name
        for name in listed
        if name not in {"config", "print-config", "dry-run", "local", "preset"} and "FIELD" not in name
    ]
    assert sorted(own) == sorted(name.replace("_", "-") for name in fields)


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_is_a_command_and_what_people_set_are_options(verb, capsys):
    entry = VERBS[verb]
    assert set(entry.usual) <= set(dict(leaves(entry.model())))
    assert main([verb, "--print-config", *shlex.split(entry.example)]) == 0


def special(field):
    return any(isinstance(mark, Open | Rest) for mark in field.metadata)


def test_options_are_grouped_by_what_they_govern(capsys):
    text = printed(capsys, "em", "--help-all")
    titles = [line for line in text.splitlines() if line.startswith(("assign: ", "train: "))]
    assert "train: The options of the updates:" in titles
    assert text.index("--cycles INT") < text.index("--assign.steps INT")
    short = printed(capsys, "em", "--help")
    assert re.search(r"--train\.OPTION .*\(\d+ options\)", short)
    assert re.search(r"\d+ more options: ortho em --help-all", short)


def test_what_an_option_takes_is_said(capsys):
    text = printed(capsys, "em", "--help-all")
    for entry in (
        "--heldout none|auto|PATH",
        "--preserve-to first|last",
        "--baseline  ",
        "--assign.report true|false",
        "--train.preserve-prompts elsewhere|training|PATH",
        "--assignments-cache PATH",
        "--train.lr FLOAT",
    ):
        assert entry in text


def test_the_version_is_told(capsys):
    assert re.fullmatch(r"ortho \d+\.\d+\.\d+\n", printed(capsys, "--version"))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["asign"], "did you mean assign?"),
        (["em", "--lr", "1"], "did you mean --assign.lr or --train.lr?"),
        (["em", "--batch-size", "1"], "did you mean --train.batch-size or --evaluate.batch-size?"),
        (["em", "--no-baseline"], "did you mean --baseline false?"),
        (["train", "--learning-rate", "1"], "--help-all lists the options"),
        (["em", "--lora_rnk", "4"], "did you mean --train.lora-rank?"),
        (["submit", "em", "--address", "x"], "--address is an option of submit: give it before em"),
    ],
)
def test_what_is_likely_to_be_meant_is_offered(argv, says, capsys):
    assert main(argv) == 1
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
