"""Class numbers, the prompts of class-conditional generators."""

from collections.abc import Sequence

from ortho_core.errors import BadRow


def class_number(prompt: str, classes: Sequence[str]) -> int:
    """The number of the class that a prompt names, by name or by number. Raises BadRow, with the accepted prompts."""
    if prompt in classes:
        return classes.index(prompt)
    if prompt.isascii() and prompt.isdecimal() and int(prompt) < len(classes):
        return int(prompt)
    shown = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
    message = f"prompt {prompt[:100]!r} is no class; accepted: {shown}, or a number from 0 to {len(classes) - 1}"
    raise BadRow("unknown-class", message)
