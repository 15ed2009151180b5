"""Recognise folders that are never pair sets: outputs of Ortho, and models."""

from collections.abc import Callable, Collection
from typing import Any

from ortho_core.storage.store import Store
from ortho_core.text.parsing import NotParsedError, json_object


def _is_run(content: Any) -> bool:
    return "run_fingerprint" in content or {"format", "rows"} <= content.keys()


def _is_ours(content: Any) -> bool:
    versions = content.get("versions")
    return isinstance(versions, dict) and "ortho" in versions


#: By a file in such a folder: a test of the file's content, and the kind of folder.
OWN_MARKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "plan.json": (_is_run, "the output of `ortho`"),
    "meta.json": (_is_ours, "the output of `ortho`"),
    "verify_noise.json": (lambda content: True, "the output of `ortho`"),
    "model_index.json": (lambda content: "_class_name" in content, "a model"),
    "lora.json": (lambda content: "base_model" in content, "a model"),
    "config.json": (lambda content: content.get("kind") == "class-conditional", "a model"),
}


def own_folder(root: Store, folder: str, names: Collection[str]) -> str | None:
    """The kind of the folder, in words; None if it may be a pair set. `names` are the names of its files."""
    for name in OWN_MARKS.keys() & names:
        is_mark, kind = OWN_MARKS[name]
        try:
            content = json_object(root.read(f"{folder}/{name}" if folder else name, 0, 1 << 22), name)
        except (OSError, NotParsedError):
            continue
        if is_mark(content):
            return kind
    return None
