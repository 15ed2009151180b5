"""Paths and URLs among the options of a job: expands `~` and variables, makes paths absolute, checks outputs."""

import os
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ortho_core.errors import UserError
from ortho_core.storage.location import Place
from ortho_core.storage.open import absolute

M = TypeVar("M", bound=BaseModel)
#: `$NAME` or `${NAME}`; any text between braces is a name.
VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([^}]*)\})")


def expand(path: str) -> str:
    """`path` with `~` and environment variables replaced, unless it is a URL or a file of exactly this name exists.

    Raises ValueError for a user or a variable that does not exist, and for a variable that is empty.
    """
    if "://" in path or os.path.lexists(path):
        return path
    home, slash, rest = path.partition("/")
    if home.startswith("~"):
        known = os.path.expanduser(home)
        if known == home:
            raise ValueError(f"there is no user {home[1:]!r}; write ./{home} for a folder of this name")
        home = known
    else:
        home = VARIABLE.sub(_value, home)
    return home + slash + VARIABLE.sub(_value, rest)


def _value(match: re.Match[str]) -> str:
    name = match[1] or match[2] or ""
    if not os.environ.get(name):
        raise ValueError(f"the environment variable {name!r} is {'empty' if name in os.environ else 'not set'}")
    return os.environ[name]


def located(job: M) -> M:
    """The job with every local path absolute, for processes with another current directory; URLs keep their form."""
    return _with_places(job, lambda place, _: place.absolute() if isinstance(place, Path) else absolute(place))


def relative_paths(job: BaseModel) -> list[tuple[str, Path]]:
    """The options whose value is a relative path of the local file system and not the default.

    A path that starts with `~` or a variable is left out: only the machine that runs the job can replace these.
    """
    defaults = {option: field.get_default(call_default_factory=True) for option, field, _ in _options(job)}
    return [
        (option, Path(place))
        for option, field, value in _options(job)
        if value != defaults[option]
        for place, _ in _places(field, value)
        if _is_relative(str(place))
    ]


def check_outputs(job: BaseModel) -> None:
    """Raises UserError for an output inside the folder of a pair set or a model: it would be read as a part of that."""
    places = [(option, place, role) for option, field, value in _options(job) for place, role in _places(field, value)]
    for output, written in outputs(job):
        for source, read in ((option, place) for option, place, role in places if role == "source"):
            if _lies_in(str(written), str(read)):
                raise UserError(
                    f"{output} {written} lies in {source} {read}: the output would be read as a part of it; choose a folder "
                    "elsewhere"
                )


def outputs(job: BaseModel) -> list[tuple[str, Any]]:
    """The options that name what the job writes, with their places."""
    return [
        (o, place) for o, field, value in _options(job) for place, role in _places(field, value) if role == "output"
    ]


def _lies_in(inner: str, outer: str) -> bool:
    """Whether `inner` is the folder `outer` or lies in it, with links resolved. False if `outer` is a file or a pattern."""
    if "://" in outer:
        return f"{inner.rstrip('/')}/".startswith(f"{outer.rstrip('/')}/")
    return "://" not in inner and os.path.isdir(outer) and Path(inner).resolve().is_relative_to(Path(outer).resolve())


def _options(job: BaseModel, prefix: str = "--") -> Iterator[tuple[str, FieldInfo, Any]]:
    """Every option with its field and its value; an option of a group begins with the group's name."""
    for name, field in type(job).model_fields.items():
        value, option = getattr(job, name), prefix + name.replace("_", "-")
        if isinstance(value, BaseModel):
            yield from _options(value, f"{option}.")
        else:
            yield option, field, value


def _places(field: FieldInfo, value: Any) -> list[tuple[Any, str | None]]:
    """The places (paths and URLs) in a value, each with its role."""
    places: list[tuple[Any, str | None]] = []
    changed(field.annotation, field.metadata, value, lambda place, mark: places.append((place, mark.role)))
    return places


def _is_relative(place: str) -> bool:
    return "://" not in place and not place.startswith(("/", "~")) and not VARIABLE.match(place)


def _with_places(model: M, change: Callable[[Any, Place], object]) -> M:
    fields = type(model).model_fields
    values = {name: changed(f.annotation, f.metadata, getattr(model, name), change) for name, f in fields.items()}
    return model.model_copy(update=values)


def changed(kind: object, metadata: typing.Sequence[object], value: Any, change: Callable[[Any, Place], object]) -> Any:
    """`value`, of an option of the type `kind`, with `change` applied to each place (path or URL) in it."""
    if isinstance(value, BaseModel):
        return _with_places(value, change)
    for mark in metadata:
        if isinstance(mark, Place):
            return change(value, mark) if mark.is_place(value) else value
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return changed(parts[0], parts[1:], value, change)
    if origin in (typing.Union, UnionType):
        for part in parts:
            value = changed(part, (), value, change)
    elif origin is dict and isinstance(value, dict):
        return {name: changed(parts[1], (), each, change) for name, each in value.items()}
    elif origin in (list, tuple) and isinstance(value, list | tuple):
        return type(value)(changed(parts[0], (), each, change) for each in value)
    return value
