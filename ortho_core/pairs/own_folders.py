"""Folders that are no pairs, whatever lies in them: what this program wrote, and models."""

from collections.abc import Callable, Collection
from typing import Any

from ortho_core.storage.store import Store
from ortho_core.text.parsing import NotParsedError, json_object


def _is_run(content: Any) -> bool:
    return "run_fingerprint" in content or {"format", "rows"} <= content.keys()


def _is_ours(content: Any) -> bool:
    versions = content.get("versions")
    return isinstance(versions, dict) and "ortho" in versions


#: By a file that such a folder has: what its content has to say, and what the folder is.
OWN_MARKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "plan.json": (_is_run, "the output of `ortho`"),
    "meta.json": (_is_ours, "the output of `ortho`"),
    "verify_noise.json": (lambda content: True, "the output of `ortho`"),
    "model_index.json": (lambda content: "_class_name" in content, "a model"),
    "lora.json": (lambda content: "base_model" in content, "a model"),
    "config.json": (lambda content: content.get("kind") == "class-conditional", "a model"),
}


def own_folder(root: Store, folder: str, names: Collection[str]) -> str | None:
    """What the folder is, if it is none of pairs; `names` are those of its files."""
    for name in OWN_MARKS.keys() & names:
        says, what = OWN_MARKS[name]
        try:
            content = json_object(root.read(f"{folder}/{name}" if folder else name, 0, 1 << 22), name)
        except (OSError, NotParsedError):
            continue
        if says(content):
            return what
    return None
