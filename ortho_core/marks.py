"""How each field of a configuration affects the result of a run.

Every field is declared with one of three marks in place of pydantic's `Field`. A run's plan and fingerprints are made from
the marks, so no new field can be forgotten there.
"""

from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar, Unpack, overload

from pydantic import BaseModel, Field, JsonValue
from pydantic.fields import FieldInfo

from ortho_core.text.plain_text import redacted_all

T = TypeVar("T")
KEY = "mark"


class Limits(TypedDict, total=False):
    """The limits of a value that pydantic checks."""

    gt: float
    ge: float
    lt: float
    le: float
    min_length: int
    pattern: str
    allow_inf_nan: bool


@dataclass(frozen=True)
class Mark:
    """Declares a field, as `Field` does, with its help, its limits and a default. A field without a default is required."""

    name: str

    @overload
    def __call__(self, default: T, *, description: str, **limits: Unpack[Limits]) -> T: ...

    @overload
    def __call__(self, *, description: str, **limits: Unpack[Limits]) -> Any: ...

    def __call__(self, default: Any = ..., *, description: str, **limits: Unpack[Limits]) -> Any:
        return Field(default, description=description, json_schema_extra={KEY: self.name}, **limits)


#: The value decides the result and is part of the plan.
decides = Mark("decides")
#: The value decides the result only through what it refers to. The plan has that instead: the fingerprint of a model or of a
#: pair set, the number of rows.
resolved = Mark("resolved")
#: The value decides speed, place, length or logging, not the result. It may change when a run is resumed.
conduct = Mark("conduct")

MARKS = {mark.name: mark for mark in (decides, resolved, conduct)}


def mark_of(field: FieldInfo) -> Mark | None:
    """The mark of a field; None if it was declared without one."""
    extra = field.json_schema_extra
    return MARKS.get(str(extra.get(KEY))) if isinstance(extra, dict) else None


def settings(config: BaseModel, *marks: Mark) -> dict[str, JsonValue]:
    """The values of all fields with one of these marks, ready for JSON and without secrets in URLs.

    Each nested group of fields is a nested mapping.
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
