"""Files of prompts, and what is none."""

import json
import os

import pytest

from ortho_core.errors import UserError
from ortho_core.pairs.limits import MAX_PROMPT_LENGTH
from ortho_core.pairs.prompt_file import MOST_PROMPT_BYTES, read_prompt_rows, read_prompts


def test_a_prompts_file_is_read_in_three_forms(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n  two \n")
    assert read_prompts(tmp_path / "a.txt") == ("one", "two")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"prompt": p, "image": "x"}) + "\n" for p in ("one", "two")))
    assert read_prompts(tmp_path / "a.jsonl") == ("one", "two")
    assert read_prompt_rows(tmp_path / "a.jsonl")[1] == {"prompt": "two", "image": "x"}
    (tmp_path / "a.json").write_text('["one", "two\\u2028and a half"]')
    assert read_prompts(tmp_path / "a.json") == ("one", "two\u2028and a half")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", " \n", "contains a blank prompt, or no prompt"),
        ("a.jsonl", '{"text": "one"}', "accepted: one prompt a line"),
        ("a.jsonl", '{"prompt": 3}', "contains a blank prompt, or no prompt"),
        ("a.json", '{"prompt": "one"}', "it is not a list"),
        ("b.txt", None, "No such file"),
    ],
)
def test_a_prompts_file_that_is_none_is_refused(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=says):
        read_prompts(tmp_path / name)


def test_what_costs_without_bound_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UserError, match="it is no regular file"):
        read_prompts(tmp_path / "pipe.txt")
    with (tmp_path / "sparse.txt").open("wb") as sparse:
        sparse.truncate(MOST_PROMPT_BYTES + 1)
    with pytest.raises(UserError, match=f"it has {MOST_PROMPT_BYTES + 1} bytes; accepted: {MOST_PROMPT_BYTES}$"):
        read_prompts(tmp_path / "sparse.txt")
    (tmp_path / "long.txt").write_text("one\n" + "x" * MAX_PROMPT_LENGTH + "\n" + "y" * (MAX_PROMPT_LENGTH + 1))
    with pytest.raises(
        UserError, match=r"prompt 3 has 20,001 characters; accepted: 20,000 \(models read only a few hundred\)$"
    ):
        read_prompts(tmp_path / "long.txt")
