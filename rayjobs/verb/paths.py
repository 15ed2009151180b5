"""Paths and URLs of a job, made absolute."""

import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ortho_core.storage.store import Location
from rayjobs.verb.options import leaves


def relative_paths(job: BaseModel) -> list[tuple[str, Path]]:
    """The options of a verb, not left at their defaults, whose value is a relative path of the local file system."""
    found = []
    for name, field in leaves(type(job)):
        if not holds_path(field.annotation, field.metadata):
            continue
        value: Any = job
        for part in name.split("."):
            value = getattr(value, part)
        if value == field.get_default(call_default_factory=True) or value is None:
            continue
        for one in value.values() if isinstance(value, dict) else [value]:
            if "://" not in str(one) and not Path(one).is_absolute():
                found.append(("--" + name.replace("_", "-"), Path(one)))
    return found


def holds_path(annotation: Any, metadata: list[Any]) -> bool:
    """Whether an option's type is or contains Path or Location."""
    if annotation is Path or annotation == Location or any(mark in metadata for mark in typing.get_args(Location)[1:]):
        return True
    return any(holds_path(part, []) for part in typing.get_args(annotation))
