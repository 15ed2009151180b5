"""Reads a command line and a YAML file into one frozen, validated configuration.

The configuration's pydantic model is the only description of the options: names, types, bounds, help. Dashes and
underscores mean the same, dots separate the names of nested fields, and the command line overrides the file. A field marked
`Open` accepts any names after it: `--sweep.train.lr 1e-4,1e-3`. `~` and `$VARIABLES` in paths are replaced.
"""

import argparse
import difflib
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ortho_core.errors import UserError, needed
from ortho_core.text.parsing import parse_yaml, shown
from ortho_core.text.plain_text import one_line
from rayjobs.verb.help import flag_of, full_help, leaves, verb_help
from rayjobs.verb.paths import expand
from rayjobs.verb.presets import PRESETS
from rayjobs.verb.table import VERBS

M = TypeVar("M", bound=BaseModel)


class Open:
    """Marks a field that accepts any names; the job checks them."""


class Nameless:
    """Marks the one field of a verb whose value may be given without the option's name: `ortho look PAIRS`."""


class Rest:
    """Marks the field with the command of a verb that runs another verb: all arguments after its own options."""


@dataclass(frozen=True)
class Parsed(Generic[M]):
    job: M
    print_config: bool
    dry_run: bool
    local: bool


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parse(model: type[M], argv: list[str], verb: str, expand: Callable[[str], str] | None = expand) -> Parsed[M]:
    """Parse `argv` (without the verb). Raises UserError, in one line, for anything that is not accepted.

    `expand` replaces `~` and variables in paths; None leaves them for another machine. With `--help` or `--help-all` it prints
    the help and raises SystemExit.
    """
    fields = dict(leaves(model))
    _help(model, fields, argv, verb)
    command = next((name for name, field in fields.items() if _is(Rest, field)), None)
    rest: list[str] = []
    if command is not None:
        del fields[command]
        argv, rest = _cut(argv, fields)
    parser = _Parser(prog=f"ortho {verb}", allow_abbrev=False, add_help=False)
    parser.add_argument("--config")
    parser.add_argument("--print-config", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    presets = PRESETS.get(verb, {})
    if presets:
        parser.add_argument("--preset")
    on_ray = verb in VERBS and VERBS[verb].ray
    if on_ray:
        parser.add_argument("--local", action="store_true")
    open_groups = tuple(name for name, field in fields.items() if _is(Open, field))
    for name, field in fields.items():
        if name in open_groups:
            continue
        if field.annotation is bool:
            parser.add_argument(flag_of(name), dest=name, default=argparse.SUPPRESS, nargs="?", const=True)
        else:
            parser.add_argument(flag_of(name), dest=name, default=argparse.SUPPRESS)
    given, unknown = parser.parse_known_args([_normalise(a) for a in argv])
    opened, unknown = _opened(unknown, open_groups)
    nameless = next((name for name, field in fields.items() if _is(Nameless, field)), None)
    if nameless is not None and nameless not in given and unknown and not unknown[0].startswith("-"):
        setattr(given, nameless, unknown.pop(0))
    if unknown:
        raise UserError(
            unknown_option(
                unknown[0],
                [
                    *fields,
                    "config",
                    "print_config",
                    "dry_run",
                    *(["local"] if on_ray else []),
                    *(["preset"] if presets else []),
                ],
            )
        )
    options = vars(given)
    local = options.pop("local", False)
    config, print_config, dry_run = options.pop("config"), options.pop("print_config"), options.pop("dry_run")
    values = {} if config is None else _read_yaml(config_file(config))
    if rest:
        values[command or ""] = rest
    elif command is not None and command not in values:
        raise UserError("no verb is given after the options; accepted: a verb with its options")
    preset = values.pop("preset", None) if presets else None
    preset = options.pop("preset", None) or preset
    if preset is not None and preset not in list(presets):
        raise UserError(f"--preset: {shown(preset)} is not accepted: {', '.join(presets)}")
    for name, value in options.items():
        if isinstance(value, str) and value.lower() in {"none", "null"} and type(None) in _args(fields[name]):
            value = None
        _put(values, name.split("."), value)
    for name, value in opened:
        _put(values, name.split("."), value)
    for name, value in presets.get(str(preset), {}).items():
        _fill(values, name.split("."), value)
    try:
        return Parsed(model.model_validate(values, context={"expand": expand}), print_config, dry_run, local)
    except ValidationError as error:
        raise UserError(explain(error, list(fields))) from error


def as_yaml(job: BaseModel) -> str:
    """The resolved configuration in the form that `--config` reads."""
    return str(yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False))


def config_file(name: str) -> Path:
    """The file that `--config` names. Raises UserError for a blank name, or one with an unknown user or variable."""
    if not name.strip():
        raise UserError("--config: an empty path is not accepted")
    try:
        return Path(expand(name))
    except ValueError as error:
        raise UserError(f"--config: {name!r} is not accepted: {error}") from error


def _is(mark: type, field: FieldInfo) -> bool:
    return any(isinstance(each, mark) for each in field.metadata)


def _args(field: FieldInfo) -> tuple[object, ...]:
    return typing.get_args(field.annotation)


def _help(model: type[BaseModel], fields: dict[str, FieldInfo], argv: list[str], verb: str) -> None:
    """Print the help and raise SystemExit, if `argv` requests it."""
    special: dict[str, str] = {}
    for name, field in fields.items():
        if _is(Open, field):
            special[name] = f"{flag_of(name)}.FIELD VALUES"
        elif _is(Rest, field):
            special[name] = "VERB ..."
            argv = _cut(argv, {each: f for each, f in fields.items() if each != name})[0]
    requested = {"-h", "--help", "--help-all"} & set(argv)
    if requested:
        write = full_help if "--help-all" in requested else verb_help
        print(write(verb, VERBS.get(verb), model, special), end="")
        raise SystemExit(0)


def _opened(arguments: list[str], groups: tuple[str, ...]) -> tuple[list[tuple[str, str]], list[str]]:
    """Split the arguments that argparse does not know: options of open groups as (dotted name, value), and the rest."""
    opened, rest, waiting = [], [], list(arguments)
    while waiting:
        name, equals, value = waiting.pop(0).partition("=")
        plain = name.removeprefix("--").replace("-", "_")
        if not name.startswith("--") or not plain.startswith(tuple(f"{group}." for group in groups)):
            rest.append(name + equals + value)
            continue
        if not equals:
            if not waiting or waiting[0].startswith("--"):
                raise UserError(f"{name} has no values; accepted: {name} VALUE,VALUE")
            value = waiting.pop(0)
        opened.append((plain, value))
    return opened, rest


def _normalise(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _cut(argv: list[str], fields: dict[str, FieldInfo]) -> tuple[list[str], list[str]]:
    """The arguments before the first that is neither an option nor an option's value, and the rest."""
    flags = {"help", "help_all", "print_config", "dry_run"} | {
        name for name, field in fields.items() if field.annotation is bool
    }
    at = 0
    while at < len(argv) and argv[at].startswith("-"):
        alone = argv[at] == "-h" or "=" in argv[at] or argv[at][2:].replace("-", "_") in flags
        at += 1 if alone else 2
    return argv[:at], argv[at:]


def _read_yaml(path: Path) -> dict[str, object]:
    try:
        content = needed(parse_yaml, path.read_bytes(), f"--config {path}")
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"--config {path} holds a {type(content).__name__}; accepted: a mapping of options")
    return _underscore(content)


def _underscore(mapping: Mapping[object, object]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in mapping.items():
        value = _underscore(value) if isinstance(value, dict) else value
        _put(result, str(key).replace("-", "_").split("."), value)
    return result


def _put(values: dict[str, object], path: list[str], value: object) -> None:
    for part in path[:-1]:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise UserError(f"{part} is {shown(inner)}; accepted: a group of options")
        values = inner
    before = values.get(path[-1])
    if isinstance(value, dict) and isinstance(before, dict):
        for key, inner in value.items():
            _put(before, [key], inner)
    else:
        values[path[-1]] = value


def _fill(values: dict[str, object], path: list[str], value: object) -> None:
    """Set a value if it is not set."""
    for part in path[:-1]:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            return  # the validation reports what is wrong with the group
        values = inner
    values.setdefault(path[-1], value)


def unknown_option(name: str, known: list[str]) -> str:
    """The message for an unknown option, with the most similar known one."""
    name = name.partition("=")[0].lstrip("-").replace("-", "_")
    if (
        name.rpartition(".")[2] == "lora" and "model" in known
    ):  # a verb that trains: its result would have two parts, the LoRA and what was trained
        return (
            f"unknown option {name!r}: `ortho convert MODEL --lora FILE --out FOLDER` merges LoRAs into a "
            "model; give --model FOLDER"
        )
    return f"unknown option {name!r}{_meant(name, known)}"


def _meant(name: str, known: list[str]) -> str:
    last = name.rpartition(".")[2]
    inner = [each for each in known if "." in each and each.rpartition(".")[2] == last]
    if name.startswith("no_") and (positive := [each for each in known if each.rpartition(".")[2] == last[3:]]):
        return f"; did you mean {flag_of(positive[0])} false?"
    # An option of a group, given without the group's name or with another group's.
    if name not in known and inner:
        return f"; did you mean {' or '.join(map(flag_of, inner))}?"
    ends = {each.rpartition(".")[2]: each for each in reversed(known)}
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
    close = close or [ends[each] for each in difflib.get_close_matches(name, list(ends), n=1, cutoff=0.7)]
    close = close or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {flag_of(close[0])}?" if close else "; --help-all lists the options"


def explain(error: ValidationError, known: list[str]) -> str:
    """All errors in one line; each names its option, the value, and what is accepted."""
    faults = []
    for fault in error.errors():
        name = ".".join(str(part) for part in fault["loc"] if part in {p for k in known for p in k.split(".")})
        if fault["type"] == "extra_forbidden":
            faults.append(unknown_option(".".join(str(part) for part in fault["loc"]), known))
        elif fault["type"] == "missing":
            faults.append(f"--{name.replace('_', '-')} is required")
        elif fault["type"] == "empty_path":
            faults.append(f"--{name.replace('_', '-')}: {fault['msg']}")
        else:
            message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
            refused = (
                ""
                if isinstance(fault["input"], dict | BaseModel)
                else f"{one_line(repr(fault['input']), 200)} is not accepted: "
            )
            place = f"--{name.replace('_', '-')}: {refused}" if name else ""
            faults.append(f"{place}{message}")
    return "; ".join(dict.fromkeys(faults))
