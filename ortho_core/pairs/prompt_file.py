"""Files of prompts without images: text, JSON lines, or a JSON list."""

from pathlib import Path
from typing import Any

from ortho_core.errors import UserError
from ortho_core.pairs.limits import MAX_PROMPT_LENGTH
from ortho_core.text.parsing import json_object, parse_json, regular_bytes
from ortho_core.text.plain_text import one_line

#: Of a file of prompts; a million prompts have a tenth of that.
MOST_PROMPT_BYTES = 1 << 30
ACCEPTED = "one prompt a line, .jsonl with `prompt`, or .json, a list of prompts"


def read_prompt_rows(file: Path) -> tuple[dict[str, Any], ...]:
    """A row for each prompt of a file: of .jsonl all that its line holds, else `prompt` alone. Blank lines do not count.

    Raises UserError for a file that cannot be read, holds no prompt, or a blank one.
    """
    try:
        text = regular_bytes(file, MOST_PROMPT_BYTES).decode("utf-8-sig")
        lines = [(n, line.strip()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        if file.suffix == ".jsonl":
            rows = [json_object(line, f"line {n}") for n, line in lines]
        elif file.suffix == ".json":
            listed = parse_json(text, "it", encodable=True)
            if not isinstance(listed, list):
                raise TypeError("it holds no list")
            rows = [{"prompt": prompt} for prompt in listed]
        else:
            rows = [{"prompt": line} for _, line in lines]
        prompts = [row["prompt"] for row in rows]
    except OSError as error:
        raise UserError(f"prompts file {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"prompts file {file}: {_reason(error)}; accepted: {ACCEPTED}") from error
    if not prompts or not all(isinstance(prompt, str) and prompt.strip() for prompt in prompts):
        raise UserError(f"prompts file {file} holds a blank prompt or none at all")
    for n, prompt in enumerate(prompts, 1):
        if len(prompt) > MAX_PROMPT_LENGTH:
            raise UserError(
                f"prompts file {file}: prompt {n} has {len(prompt):,} characters; accepted: {MAX_PROMPT_LENGTH:,}, of which "
                "models read some hundred"
            )
    return tuple(rows)


def _reason(error: Exception) -> str:
    return f"a row has no {one_line(error)}" if isinstance(error, KeyError) else one_line(error)


def read_prompts(file: Path) -> tuple[str, ...]:
    """The prompts alone. Raises UserError as `read_prompt_rows` does."""
    return tuple(row["prompt"] for row in read_prompt_rows(file))
