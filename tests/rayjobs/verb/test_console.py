"""What a job says while it runs, in a file and on a terminal."""

import os
import pty
import re
import sys

import pytest

from rayjobs.verb import console
from rayjobs.verb.console import Progress, say


@pytest.fixture
def clock(monkeypatch):
    """The time, which the test sets."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_in_a_file_start_up_is_told_and_does_not_count_in_the_rate(clock, capsys):
    progress = Progress("assign", 100, "rows", starting="starting 2 workers, which load the model")
    clock[0] += 60
    progress.advance(10, "mean loss 0.5")
    clock[0] += 5
    progress.advance(10)
    clock[0] += 6
    progress.advance(20, "mean loss 0.4")
    clock[0] += 1
    progress.advance(60)
    progress.close()
    assert capsys.readouterr().err.splitlines() == [
        "assign: starting 2 workers, which load the model",
        "assign: 10/100 rows, mean loss 0.5",
        "assign: 40/100 rows, 2.7 rows/s, 22 s left, mean loss 0.4",
        "assign: 100/100 rows, 7.5 rows/s",
    ]


def test_what_was_done_before_does_not_count_either_and_nothing_new_is_no_line(clock, capsys):
    progress = Progress("train", 100, "updates", done=50)
    clock[0] += 20
    progress.advance(1)
    clock[0] += 600
    progress.advance(10)
    progress.close()
    assert capsys.readouterr().err.splitlines() == [
        "train: 51/100 updates",
        "train: 61/100 updates, 1.0 updates/min, 39 min left",
    ]


def test_a_run_that_is_done_says_nothing(capsys):
    Progress("generate", 4, "images").close()
    assert capsys.readouterr().err == ""


def test_on_a_terminal_a_bar_stays_below_what_is_said(monkeypatch):
    terminal, end = pty.openpty()
    with os.fdopen(end, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        progress = Progress("assign", 8, "rows", starting="loading the model")
        say("a line between")
        for _ in range(4):
            progress.advance(2, "mean loss 0.25")
        progress.close()
        say("the end")
        content = b""
        while b"the end" not in content:
            content += os.read(terminal, 1 << 16)
    os.close(terminal)
    shown = content.decode()
    assert "loading the model" in shown
    lines = [re.split(r"\r|\x1b\[A", line)[-1] for line in shown.replace("\r\n", "\n").splitlines()]
    assert any(line.startswith("a line between") for line in lines)
    assert any(re.match(r"assign 100%\|.*\| 8/8 rows, .*mean loss 0.25", line) for line in lines)
    assert lines[-1] == "the end"
    assert console.OPEN_BARS == []


def test_what_others_wrote_moves_no_cursor_and_shows_no_secret(clock, capsys):
    say("x\x1b[2J\ud83d https://u:secret@h/a?sig=secret\nsecond")
    progress = Progress("a\x07", 3, "images")
    clock[0] += 20
    progress.advance(1, "b\r\udcff")
    progress.close()
    said = capsys.readouterr().err
    assert said.startswith("x\\x1b[2J\\ud83d https://user:***@h/a?sig=***\nsecond\na\\x07: ")
    assert "b\\r\\udcff" in said
    assert "secret" not in said
