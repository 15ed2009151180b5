import os
import subprocess
import sys

import pytest

LEAVES = "from rayjobs.processes.leaving import leave\n"


def left(program: str, **options) -> subprocess.CompletedProcess[str]:
    """A process whose program is ended by `leave`."""
    return subprocess.run(
        [sys.executable, "-c", LEAVES + program], capture_output=True, text=True, timeout=100, check=False, **options
    )


@pytest.mark.parametrize("code", [0, 1, 130, None, "a last line", True])
def test_it_ends_as_sys_exit_does(code):
    ours, theirs = left(f"leave({code!r})"), left(f"import sys; sys.exit({code!r})")
    assert (ours.returncode, ours.stdout, ours.stderr) == (theirs.returncode, theirs.stdout, theirs.stderr)


def test_what_is_to_happen_at_exit_happens_in_its_order_and_what_was_printed_is_seen():
    program = """
import atexit, sys, threading, time
atexit.register(print, "third")
atexit.register(print, "second")
def late():
    time.sleep(0.2)
    print("first")
threading.Thread(target=late).start()
sys.stdout.write("at once\\n")
leave(3)
"""
    done = left(program)
    assert (done.returncode, done.stdout, done.stderr) == (3, "at once\nfirst\nsecond\nthird\n", "")


def test_a_reader_who_has_gone_is_no_traceback():
    program = "import sys\nsys.stdin.read()\nprint('x')\nleave(0)"
    with subprocess.Popen(
        [sys.executable, "-c", LEAVES + program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    ) as process:
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == ""
    assert process.returncode == 120


def test_modules_are_not_taken_apart():
    """Of objects that end with their module, nothing runs."""
    program = "class Told:\n    def __del__(self): print('taken apart')\ntold = Told()\ntold.self = told\nleave(0)"
    assert left(program).stdout == ""
    assert left(program.replace("leave(0)", "")).stdout == "taken apart\n"
