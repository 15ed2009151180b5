"""What the shell offers, asked of a real bash."""

import subprocess

import pytest

from rayjobs.cli import main
from rayjobs.verb.completion import completion

ASK = """
COMP_WORDS=({words} "{last}"); COMP_CWORD={at}; _ortho; printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def offered(*words: str) -> list[str]:
    """The words that bash offers in place of the last one."""
    ask = ASK.format(words=" ".join(words[:-1]), last=words[-1], at=len(words) - 1)
    done = subprocess.run(["bash", "-c", completion(["bash"]) + ask], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_verbs_and_options_are_offered_by_their_beginning():
    assert offered("ortho", "ev") == ["evaluate"]
    assert offered("ortho", "help", "swe") == ["sweep"]
    assert offered("ortho", "em", "--train.lora-r") == ["--train.lora-rank"]
    assert {"--preset", "--print-config"} <= set(offered("ortho", "assign", "--pr"))
    assert offered("ortho", "assign", "--loca") == ["--local"]
    assert offered("ortho", "generate", "--loca") == [], "it starts no Ray"


def test_after_an_option_it_is_left_to_the_shell_to_complete_a_path():
    assert offered("ortho", "look", "--pairs", "exam") == []


def test_zsh_reads_the_same_and_any_other_shell_is_refused(capsys):
    assert completion(["zsh"]).endswith(completion(["bash"]))
    for argv in (["completion"], ["completion", "fish"], ["completion", "bash", "more"]):
        assert main(argv) == 1
        assert capsys.readouterr().err.startswith("ortho completion: name the shell, bash or zsh, for example: ")
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == completion(["bash"])


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_names_no_option_twice(shell):
    for line in completion([shell]).splitlines():
        words = line.split()
        assert len(words) == len(set(words)) or not line.startswith("    ")
