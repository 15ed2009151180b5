"""The table of verbs: what each names is there, and its options come without what is heavy."""

import json
import subprocess
import sys

import pytest

from rayjobs.verb.table import VERBS
from tests.conftest import ROOT


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_has_options_and_what_runs_and_describes_it(verb):
    assert VERBS[verb].model().model_fields
    assert all(map(callable, VERBS[verb].load()))


def test_help_and_refusals_import_nothing_that_takes_long():
    program = """
import json, sys
from rayjobs.cli import main

for command in json.loads(sys.argv[1]):
    try:
        main(command)
    except SystemExit:
        pass
    heavy = {"torch", "ray", "diffusers", "transformers", "scipy", "pyarrow", "numpy", "PIL"} & sys.modules.keys()
    assert not heavy, f"ortho {' '.join(command)} imports {heavy}"
"""
    commands = [[verb, option] for verb in VERBS for option in ("--help", "--no-such-option")]
    commands += [["submit", "em", "--no-such-option"], ["download", "--list"]]
    argv = [sys.executable, "-W", "ignore", "-c", program, json.dumps(commands)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ortho ") == len(VERBS)
    assert done.stderr.count("unknown option 'no_such_option'") == len(VERBS) + 1
