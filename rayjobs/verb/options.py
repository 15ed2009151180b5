"""From a command line and a YAML file to one frozen, validated configuration.

The configuration's pydantic model is the only description of the options: names, types, bounds, help. Dashes and
underscores are the same, nested fields are reached by dots, the command line wins over the file. A field marked `Open` takes
whatever names follow it: `--sweep.train.lr 1e-4,1e-3`. `~` and `$VARIABLES` in paths are replaced.
"""

import argparse
import difflib
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ortho_core.errors import UserError
from rayjobs.verb.paths import expand
from rayjobs.verb.table import VERBS

M = TypeVar("M", bound=BaseModel)


class Open:
    """Marks a field whose names are checked by the job itself."""


class Nameless:
    """Marks the one field of a verb whose value may stand without the option's name: `ortho look PAIRS`."""


class Rest:
    """Marks the field of a verb that runs another: it takes that one's name and options, all that follows its own."""


@dataclass(frozen=True)
class Parsed(Generic[M]):
    job: M
    print_config: bool
    dry_run: bool
    local: bool


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every option of `model` as (dotted name, field), nested models opened up."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def parse(model: type[M], argv: list[str], verb: str, expand: Callable[[str], str] | None = expand) -> Parsed[M]:
    """Parse `argv` (without the verb). Raises UserError, in one line, for anything that is not accepted.

    `expand` reads `~` and variables in paths; None leaves them to another machine.
    """
    fields = dict(leaves(model))
    command = next((name for name, field in fields.items() if _is(Rest, field)), None)
    rest: list[str] = []
    if command is not None:
        del fields[command]
        argv, rest = _cut(argv, fields)
    parser = _Parser(
        prog=f"ortho {verb}", description=model.__doc__, allow_abbrev=False, formatter_class=argparse.HelpFormatter
    )
    parser.add_argument("--config", metavar="PATH", help="YAML file with any of these options (the command line wins)")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, write nothing")
    on_ray = verb in VERBS and VERBS[verb].ray
    if on_ray:
        parser.add_argument(
            "--local", action="store_true", help="start a Ray of this command's own, whatever cluster there is"
        )
    open_groups = tuple(name for name, field in fields.items() if _is(Open, field))
    for name, field in fields.items():
        flag = "--" + name.replace("_", "-")
        if name in open_groups:
            parser.add_argument(
                flag + ".FIELD", metavar="VALUES", dest=name, default=argparse.SUPPRESS, help=field.description
            )
            continue
        default = "required" if field.is_required() else f"default {field.get_default()}"
        choices = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is typing.Literal else ()
        text = f"{field.description or ''} ({default})".replace("%", "%%")
        if field.annotation is bool:
            parser.add_argument(flag, dest=name, default=argparse.SUPPRESS, nargs="?", const=True, help=text)
        else:
            metavar = "|".join(map(str, choices)) or _type_name(field)
            parser.add_argument(flag, dest=name, default=argparse.SUPPRESS, metavar=metavar, help=text)
    given, unknown = parser.parse_known_args([_normalise(a) for a in argv])
    opened, unknown = _opened(unknown, open_groups)
    nameless = next((name for name, field in fields.items() if _is(Nameless, field)), None)
    if nameless is not None and nameless not in given and unknown and not unknown[0].startswith("-"):
        setattr(given, nameless, unknown.pop(0))
    if unknown:
        raise UserError(
            unknown_option(unknown[0], [*fields, "config", "print_config", "dry_run", *(["local"] if on_ray else [])])
        )
    options = vars(given)
    local = options.pop("local", False)
    config, print_config, dry_run = options.pop("config"), options.pop("print_config"), options.pop("dry_run")
    values = {} if config is None else _read_yaml(config_file(config))
    if rest:
        values[command or ""] = rest
    elif command is not None and command not in values:
        raise UserError("no verb is given after the options")
    for name, value in options.items():
        if isinstance(value, str) and value.lower() in {"none", "null"} and type(None) in _args(fields[name]):
            value = None
        _put(values, name.split("."), value)
    for name, value in opened:
        _put(values, name.split("."), value)
    try:
        return Parsed(model.model_validate(values, context={"expand": expand}), print_config, dry_run, local)
    except ValidationError as error:
        raise UserError(explain(error, list(fields))) from error


def as_yaml(job: BaseModel) -> str:
    """The resolved configuration in the form that `--config` reads."""
    return str(yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False))


def config_file(given: str) -> Path:
    """The file that `--config` names. Raises UserError for a name that is blank or leads nowhere."""
    if not given.strip():
        raise UserError("--config: an empty path is not accepted")
    try:
        return Path(expand(given))
    except ValueError as error:
        raise UserError(f"--config: {given!r} is not accepted: {error}") from error


def _is(mark: type, field: FieldInfo) -> bool:
    return any(isinstance(each, mark) for each in field.metadata)


def _args(field: FieldInfo) -> tuple[object, ...]:
    return typing.get_args(field.annotation)


def _type_name(field: FieldInfo) -> str:
    kinds = [t for t in (_args(field) or (field.annotation,)) if t is not type(None)]
    names = {str: "TEXT", int: "INT", float: "FLOAT", Path: "PATH"}
    return "|".join(names.get(k, "TEXT") if isinstance(k, type) else "TEXT" for k in kinds)


def _opened(arguments: list[str], groups: tuple[str, ...]) -> tuple[list[tuple[str, str]], list[str]]:
    """Of what argparse does not know: the options of open groups as (dotted name, value), and the rest."""
    opened, rest, waiting = [], [], list(arguments)
    while waiting:
        name, equals, value = waiting.pop(0).partition("=")
        plain = name.removeprefix("--").replace("-", "_")
        if not name.startswith("--") or not plain.startswith(tuple(f"{group}." for group in groups)):
            rest.append(name + equals + value)
            continue
        if not equals:
            if not waiting or waiting[0].startswith("--"):
                raise UserError(f"{name}: expected its values")
            value = waiting.pop(0)
        opened.append((plain, value))
    return opened, rest


def _normalise(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _cut(argv: list[str], fields: dict[str, FieldInfo]) -> tuple[list[str], list[str]]:
    """The arguments up to the first that is neither an option nor an option's value, and those from there on."""
    flags = {"help", "print_config", "dry_run"} | {name for name, field in fields.items() if field.annotation is bool}
    at = 0
    while at < len(argv) and argv[at].startswith("--"):
        alone = "=" in argv[at] or argv[at][2:].replace("-", "_") in flags
        at += 1 if alone else 2
    return argv[:at], argv[at:]


def _read_yaml(path: Path) -> dict[str, object]:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} is not YAML: {' '.join(str(error).split())}") from error
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
            raise UserError(f"{part} is {inner!r}; accepted: a group of options")
        values = inner
    before = values.get(path[-1])
    if isinstance(value, dict) and isinstance(before, dict):
        for key, inner in value.items():
            _put(before, [key], inner)
    else:
        values[path[-1]] = value


def unknown_option(name: str, known: list[str]) -> str:
    name = name.partition("=")[0].lstrip("-").replace("-", "_")
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean --{close[0].replace('_', '-')}?" if close else "; --help lists the options"
    return f"unknown option {name!r}{hint}"


def explain(error: ValidationError, known: list[str]) -> str:
    """All faults in one line, each naming its option, what was found and what is accepted."""
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
            place = f"--{name.replace('_', '-')}: {fault['input']!r} is not accepted: " if name else ""
            faults.append(f"{place}{message}")
    return "; ".join(dict.fromkeys(faults))
