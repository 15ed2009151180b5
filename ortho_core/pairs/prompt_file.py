"""Files of prompts without images: text, JSON lines, or a JSON list."""

from pathlib import Path
from typing import Any

from ortho_core.errors import UserError
from ortho_core.pairs.limits import MAX_PROMPT_LENGTH
from ortho_core.text.parsing import json_object, parse_json, regular_bytes
from ortho_core.text.plain_text import one_line

#: Bytes of the largest file of prompts; a million prompts need a tenth of that.
MOST_PROMPT_BYTES = 1 << 30
ACCEPTED = "one prompt a line, .jsonl with `prompt`, or .json, a list of prompts"


def read_prompt_rows(file: Path) -> tuple[dict[str, Any], ...]:
    """A row per prompt of a file: all entries of the line for .jsonl, else only `prompt`. Blank lines are skipped.

    Raises UserError if the file cannot be read, has no prompt, or has a blank one.
    """
    try:
        text = regular_bytes(file, MOST_PROMPT_BYTES).decode("utf-8-sig")
        lines = [(n, line.strip()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        if file.suffix == ".jsonl":
            rows = [json_object(line, f"line {n}") for n, line in lines]
        elif file.suffix == ".json":
            listed = parse_json(text, "it", encodable=True)
            if not isinstance(listed, list):
                raise TypeError("it is not a list")
            rows = [{"prompt": prompt} for prompt in listed]
        else:
            rows = [{"prompt": line} for _, line in lines]
        prompts = [row["prompt"] for row in rows]
    except OSError as error:
        raise UserError(f"prompts file {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"prompts file {file}: {_reason(error)}; accepted: {ACCEPTED}") from error
    if not prompts or not all(isinstance(prompt, str) and prompt.strip() for prompt in prompts):
        raise UserError(f"prompts file {file} contains a blank prompt, or no prompt at all")
    for n, prompt in enumerate(prompts, 1):
        if len(prompt) > MAX_PROMPT_LENGTH:
            raise UserError(
                f"prompts file {file}: prompt {n} has {len(prompt):,} characters; accepted: {MAX_PROMPT_LENGTH:,} (models read "
                "only a few hundred)"
            )
    return tuple(rows)


def _reason(error: Exception) -> str:
    return f"a row has no {one_line(error)}" if isinstance(error, KeyError) else one_line(error)


def read_prompts(file: Path) -> tuple[str, ...]:
    """The prompts of a file, without other entries. Raises UserError as `read_prompt_rows` does."""
    return tuple(row["prompt"] for row in read_prompt_rows(file))
