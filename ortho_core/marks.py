"""What each field of a configuration does to the result of a run.

Every field is declared with one of three marks in place of pydantic's `Field`. What identifies a run is made from them, so
that a new field cannot be forgotten there.
"""

from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar, Unpack, overload

from pydantic import BaseModel, Field, JsonValue
from pydantic.fields import FieldInfo

from ortho_core.text.plain_text import redacted_all

T = TypeVar("T")
KEY = "mark"


class Limits(TypedDict, total=False):
    """What pydantic checks of a value."""

    gt: float
    ge: float
    lt: float
    le: float
    min_length: int
    pattern: str
    allow_inf_nan: bool


@dataclass(frozen=True)
class Mark:
    """Declares a field, as `Field` does: a default (none: the field is required), its help, its limits."""

    name: str

    @overload
    def __call__(self, default: T, *, description: str, **limits: Unpack[Limits]) -> T: ...

    @overload
    def __call__(self, *, description: str, **limits: Unpack[Limits]) -> Any: ...

    def __call__(self, default: Any = ..., *, description: str, **limits: Unpack[Limits]) -> Any:
        return Field(default, description=description, json_schema_extra={KEY: self.name}, **limits)


#: The value decides the result, and is part of the plan.
decides = Mark("decides")
#: What the value leads to decides the result. The plan has that: the fingerprint of a model or of a pair set, the number of
#: rows that there are.
resolved = Mark("resolved")
#: How a run goes, where it is kept, how far it goes, what it tells. It may differ when the same output is continued.
conduct = Mark("conduct")

MARKS = {mark.name: mark for mark in (decides, resolved, conduct)}


def mark_of(field: FieldInfo) -> Mark | None:
    """The mark that a field was declared with."""
    extra = field.json_schema_extra
    return MARKS.get(str(extra.get(KEY))) if isinstance(extra, dict) else None


def settings(config: BaseModel, *marks: Mark) -> dict[str, JsonValue]:
    """The values of all fields with one of these marks, ready for JSON and without secrets of URLs.

    Each group of fields is a mapping of its own.
    """
    return dict(redacted_all(config.model_dump(mode="json", include=_included(type(config), marks))))


def _included(model: type[BaseModel], marks: tuple[Mark, ...]) -> dict[str, Any]:
    included: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            included[name] = _included(field.annotation, marks)
        elif mark_of(field) in marks:
            included[name] = True
    return included
