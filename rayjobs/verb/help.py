"""The text of `--help`: an example, the required options, the usual options; and of `--help-all`: all options in groups."""

import shutil
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from ortho_core.storage.location import Place
from rayjobs.verb.presets import PRESETS, preset_line
from rayjobs.verb.table import Verb

#: The most columns of a line, and the column where descriptions begin.
LINE, NAME_COLUMN = 110, 30

#: An option as it is listed: its name with the type of its value, and its description.
Entry = tuple[str, str]

HELP = ("--help-all", "all options, in groups")
EVERYWHERE: list[Entry] = [
    ("--config PATH", "YAML file with any of these options (the command line overrides it)"),
    ("--print-config", "print the resolved configuration and stop"),
    ("--dry-run", "print what would be done, write nothing"),
]
LOCAL = ("--local", "start a new Ray on this machine for this command, even if a cluster is set")


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every option of `model` as (dotted name, field), with the options of nested models."""
    for name, field in model.model_fields.items():
        if (group := _group(field)) is not None:
            yield from leaves(group, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def flag_of(name: str) -> str:
    """The command-line option of a field's name."""
    return "--" + name.replace("_", "-")


def verb_help(name: str, verb: Verb | None, model: type[BaseModel], special: Mapping[str, str]) -> str:
    """The short help of a verb. `special`: the usage text, by field name, of fields that are not plain options."""
    fields = dict(leaves(model))
    usual = [each for each in (verb.usual if verb else ()) if each in fields]
    required = [each for each, field in fields.items() if field.is_required() and each not in special]
    shown = {*required, *usual} if usual else set(fields)
    groups = [each for each, field in model.model_fields.items() if _group(field) is not None]
    needed = " ".join(_signature(each, fields[each], special) for each in required)
    usage = " ".join(["ortho", name, *([needed] if needed else []), "[options]", *_commands(special)])
    parts = [f"usage: {usage}", _paragraph(model.__doc__ or "")]
    if verb is not None and verb.example:
        parts.append(f"example:\n  ortho {name} {verb.example}")
    parts.append(_section("required:", [_entry(each, fields[each], special) for each in required]))
    others = [each for each in (usual or fields) if each not in required and "." not in each and each not in special]
    title = "often set:" if usual else "options:"
    inner = [each for each in usual if "." in each]
    parts.append(_section(title, [_entry(each, fields[each], special) for each in [*others, *inner]]))
    lists: list[Entry] = []
    if name in PRESETS:
        dial = (f"--preset {'|'.join(PRESETS[name])}", preset_line(name))
        parts.append(_section("presets:", [dial]))
    for group in groups:
        count = sum(each.startswith(f"{group}.") for each in fields)
        title = _first_line(_group(model.model_fields[group]) or model)
        lists.append((f"{flag_of(group)}.OPTION", f"{title.split(';')[0].rstrip('.')} ({count} options)"))
    parts.append(_section("groups:", lists))
    more = [HELP] if len(shown) < len(fields) else []
    parts.append(_section("always:", [*EVERYWHERE, *([LOCAL] if verb is not None and verb.ray else []), *more]))
    if more:
        parts.append(f"{len(fields) - len(shown)} more options: ortho {name} --help-all")
    return "\n\n".join(part for part in parts if part) + "\n"


def full_help(name: str, verb: Verb | None, model: type[BaseModel], special: Mapping[str, str]) -> str:
    """Every option of a verb, grouped by the class that declares it, those of the verb itself first."""
    sections: dict[tuple[str, type[BaseModel]], list[Entry]] = {}
    for each, field in leaves(model):
        group, _, last = each.rpartition(".")
        sections.setdefault((group, _owner(model, group, last)), []).append(_entry(each, field, special))
    ordered = sorted(sections, key=lambda key: (key[0] != "", key[1] is not model))
    parts = [
        f"usage: ortho {name} [options]{''.join(f' {c}' for c in _commands(special))}",
        _paragraph(model.__doc__ or ""),
    ]
    for group, owner in ordered:
        title = "options:" if owner is model else f"{_first_line(owner).rstrip('.')}:"
        parts.append(_section(f"{group}: {title}" if group else title, sections[group, owner]))
    dial = [(f"--preset {'|'.join(PRESETS[name])}", preset_line(name))] if name in PRESETS else []
    parts.append(_section("always:", [*EVERYWHERE, *dial, *([LOCAL] if verb is not None and verb.ray else [])]))
    return "\n\n".join(parts) + "\n"


def takes(field: FieldInfo) -> str:
    """The type of an option's value, as the help names it: `INT`, `PATH`, `ddp|fsdp`."""
    if field.annotation is bool:
        return "true|false"
    if typing.get_origin(field.annotation) is typing.Literal:
        return "|".join(map(str, typing.get_args(field.annotation)))
    inside = typing.get_args(field.annotation)
    for mark in (*field.metadata, *(mark for each in inside for mark in getattr(each, "__metadata__", ()))):
        if isinstance(mark, Place):
            # `names` is a regular expression; its alternatives that are words are shown.
            words = [name for name in (mark.names or "").split("|") if name.replace("-", "").isalnum()]
            return "|".join([*words, "PATH"])
    kinds = [kind for kind in (inside or (field.annotation,)) if kind is not type(None)]
    names: Mapping[object, str] = {str: "TEXT", int: "INT", float: "FLOAT", Path: "PATH"}
    return "|".join(dict.fromkeys(names.get(kind, "TEXT") for kind in kinds))


def _group(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _owner(model: type[BaseModel], group: str, name: str) -> type[BaseModel]:
    """The class that declares a field: the model's own or one that it inherits from."""
    for part in group.split(".") if group else []:
        model = _group(model.model_fields[part]) or model
    for ancestor in reversed(model.__mro__):
        if name in vars(ancestor).get("__annotations__", {}):
            return typing.cast(type[BaseModel], ancestor)
    return model


def _commands(special: Mapping[str, str]) -> list[str]:
    return [text for text in special.values() if not text.startswith("--")]


def _signature(name: str, field: FieldInfo, special: Mapping[str, str]) -> str:
    plain = field.annotation is bool and not field.get_default()
    return special.get(name) or (flag_of(name) if plain else f"{flag_of(name)} {takes(field)}")


def _entry(name: str, field: FieldInfo, special: Mapping[str, str]) -> Entry:
    default = "" if field.is_required() else _default(field.get_default(call_default_factory=True))
    return _signature(name, field, special), f"{field.description or ''}{default}"


def _default(value: object) -> str:
    if value is None or value == ():
        return ""
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f" (default {text.lower() if isinstance(value, bool) else text})"


def _first_line(kind: type[BaseModel]) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def _paragraph(text: str) -> str:
    return "\n\n".join(_wrapped(" ".join(part.split()), "") for part in text.strip().split("\n\n"))


def _section(title: str, entries: Sequence[Entry]) -> str:
    if not entries:
        return ""
    return "\n".join([title, *(_listed(*entry) for entry in entries)])


def _listed(name: str, text: str) -> str:
    margin = " " * NAME_COLUMN
    lines = _wrapped(text, margin)
    if len(name) + 3 > NAME_COLUMN:
        return f"  {name}\n{lines}"
    return f"  {name}".ljust(NAME_COLUMN) + lines[NAME_COLUMN:]


def _wrapped(text: str, margin: str) -> str:
    width = max(60, min(LINE, shutil.get_terminal_size((100, 24)).columns))
    return textwrap.fill(text, width, initial_indent=margin, subsequent_indent=margin, break_long_words=False)
