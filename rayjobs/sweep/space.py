"""The space of a sweep: the varied fields of the configuration, each with its values or its range.

On the command line `0,0.25,1` are values, `1e-5:1e-3` is a range and `log:1e-5:1e-3` a range that is uniform in the logarithm.
YAML accepts the same text, or lists of values.
"""

import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar, get_args

import numpy as np
from pydantic import BaseModel, JsonValue, ValidationError
from pydantic.fields import FieldInfo

from ortho_core.errors import UserError
from ortho_core.storage.open import absolute
from rayjobs.verb.help import leaves
from rayjobs.verb.options import explain, unknown_option
from rayjobs.verb.paths import changed, expand

M = TypeVar("M", bound=BaseModel)
#: One trial's values by dotted field.
Point = dict[str, JsonValue]


@dataclass(frozen=True)
class Choices:
    """The values of a field."""

    values: tuple[JsonValue, ...]

    @property
    def extremes(self) -> tuple[JsonValue, ...]:
        return self.values

    def draw(self, random: np.random.Generator) -> JsonValue:
        return self.values[random.integers(len(self.values))]


@dataclass(frozen=True)
class Range:
    """The lowest and highest value of a field. `log`: uniform in the logarithm; `whole`: integers only."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @property
    def extremes(self) -> tuple[JsonValue, ...]:
        """Both ends: if a field accepts them, it accepts the range."""
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    def draw(self, random: np.random.Generator) -> JsonValue:
        """A number between both ends, which are included for whole numbers."""
        if self.whole and not self.log:
            return int(random.integers(int(self.low), int(self.high) + 1))
        if self.log:
            drawn = math.exp(random.uniform(math.log(self.low), math.log(self.high)))
            return min(int(self.high), max(int(self.low), round(drawn))) if self.whole else drawn
        return random.uniform(self.low, self.high)


Space = dict[str, Choices | Range]


def parse_space(requested: Mapping[str, JsonValue], base: BaseModel, fixed: Mapping[str, str]) -> Space:
    """Check a nested or dotted mapping of field to values against the configuration `base`.

    Every value is converted to the field's type. `fixed` has the fields, or groups of fields, that cannot be varied, each with
    the reason. Raises UserError for unknown and fixed fields, and for values, ends and ranges that are not accepted.
    """
    fields = dict(leaves(type(base)))
    space: Space = {}
    for name, values in _flat(requested, fields):
        option = f"--sweep.{name.replace('_', '-')}"
        if name not in fields:
            raise UserError(unknown_option(name, list(fields)).replace("--", "--sweep.", 1))
        for held, reason in fixed.items():
            if name == held or name.startswith(f"{held}."):
                raise UserError(f"{option}: {reason}")
        spec = _spec(option, values, fields[name])
        if isinstance(spec, Choices):
            typed = (value_of(with_values(base, {name: value}), name) for value in spec.values)
            spec = Choices(tuple(_placed(option, value, fields[name]) for value in typed))
            if len({repr(value) for value in spec.values}) < len(spec.values):
                raise UserError(f"{option}: {values!r} has the same value twice; accepted: different values")
        else:
            for value in spec.extremes:
                with_values(base, {name: value})
        space[name] = spec
    return space


def _placed(option: str, value: JsonValue, field: FieldInfo) -> JsonValue:
    """A value whose paths are absolute, since trials have another current directory. Raises UserError."""
    try:
        return changed(field.annotation, field.metadata, value, lambda place, _: absolute(expand(place)))
    except ValueError as error:
        raise UserError(f"{option}: {value!r} is not accepted: {error}") from error


def _flat(
    requested: Mapping[str, JsonValue], fields: Collection[str], prefix: str = ""
) -> Iterator[tuple[str, JsonValue]]:
    groups = {name.rpartition(".")[0] for name in fields}
    for key, value in requested.items():
        name = f"{prefix}{key}".replace("-", "_")
        if isinstance(value, Mapping) and (name in groups or any(group.startswith(f"{name}.") for group in groups)):
            yield from _flat(value, fields, f"{name}.")
        else:
            yield name, value


def _spec(option: str, requested: JsonValue, field: FieldInfo) -> Choices | Range:
    accepted = "accepted: values A,B,C, a range LOW:HIGH, or log:LOW:HIGH"
    if isinstance(requested, str) and ":" in requested:
        return _range(option, requested, field, accepted)
    if isinstance(requested, Mapping):
        raise UserError(f"{option}: {requested!r} is not accepted; {accepted}")
    values: list[JsonValue] = [requested]
    if isinstance(requested, str):
        values = [part.strip() for part in requested.split(",")]
    elif isinstance(requested, list | tuple):
        values = list(requested)
    if not values or (isinstance(requested, str) and "" in values):
        raise UserError(f"{option}: {requested!r} is empty or has an empty value; {accepted}")
    return Choices(tuple(None if isinstance(v, str) and v.lower() in {"none", "null"} else v for v in values))


def _range(option: str, requested: str, field: FieldInfo, accepted: str) -> Range:
    log = requested.startswith("log:")
    parts = requested.removeprefix("log:").split(":")
    try:
        low, high = (float(part) for part in parts)
    except ValueError:
        raise UserError(f"{option}: {requested!r} is not accepted; {accepted}") from None
    kinds = set(get_args(field.annotation)) or {field.annotation}
    whole = int in kinds and float not in kinds
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"{option}: the range {requested!r} is empty; accepted: LOW below HIGH")
    if log and low <= 0:
        raise UserError(f"{option}: {requested!r} starts at {low:g}; accepted for log: a LOW above 0")
    if not kinds & {int, float}:
        raise UserError(f"{option}: this field is not a number and has no range; accepted: values A,B,C")
    if whole and not (low.is_integer() and high.is_integer()):
        raise UserError(f"{option}: {requested!r} has an end that is no whole number; accepted: whole LOW and HIGH")
    return Range(low, high, log, whole)


def with_values(base: M, values: Mapping[str, JsonValue]) -> M:
    """The configuration with other values for some fields, by dotted name. Raises UserError if one is not accepted."""
    content = base.model_dump()
    for name, value in values.items():
        *groups, last = name.split(".")
        inner = content
        for group in groups:
            inner = inner[group]
        inner[last] = value
    try:
        return type(base).model_validate(content)
    except ValidationError as error:
        raise UserError(explain(error, [name for name, _ in leaves(type(base))]).replace("--", "--sweep.")) from error


def value_of(job: BaseModel, name: str) -> JsonValue:
    """The value of a field by dotted name, ready for JSON."""
    value: JsonValue = job.model_dump(mode="json")
    for part in name.split("."):
        assert isinstance(value, dict)
        value = value[part]
    return value


def grid(space: Space) -> list[Point]:
    """Every combination of values; the last field varies fastest. Raises UserError for a range."""
    for name, spec in space.items():
        if isinstance(spec, Range):
            raise UserError(
                f"--sweep.{name.replace('_', '-')}: a grid needs values A,B,C, not a range; or choose --search random or optuna"
            )
    return [
        dict(zip(space, values, strict=True)) for values in itertools.product(*(s.extremes for s in space.values()))
    ]


def draw(space: Space, count: int, seed: int) -> list[Point]:
    """Different random points: `count`, or fewer if the space has no more."""
    random, points, seen = np.random.default_rng(seed), [], set()
    for _ in range(100 * count):
        point = {name: spec.draw(random) for name, spec in space.items()}
        if repr(point) not in seen:
            seen.add(repr(point))
            points.append(point)
        if len(points) == count:
            break
    return points


def short_names(space: Collection[str]) -> dict[str, str]:
    """The last part of each field's name, or the whole name if another field ends with the same part."""
    last = [name.rpartition(".")[2] for name in space]
    return {name: short if last.count(short) == 1 else name for name, short in zip(space, last, strict=True)}


def text(value: JsonValue) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
