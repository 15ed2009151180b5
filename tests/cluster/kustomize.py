"""What `kustomize build` makes of a folder: by kubectl where it is installed, else by the few features used in cluster/.

The second way knows resources, components, JSON 6902 patches with a target, merge patches of one document by kind and name,
images, and config maps from files; it refuses whatever else a kustomization says.
"""

import copy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

KNOWN = {"apiVersion", "kind", "resources", "components", "patches", "images", "configMapGenerator", "generatorOptions"}


def by_kubectl(folder: Path) -> list[dict[str, Any]] | None:
    """None where there is no kubectl."""
    if shutil.which("kubectl") is None:
        return None
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def render(folder: Path) -> list[dict[str, Any]]:
    """The documents of `folder`, in no particular order."""
    return build(folder.resolve(), [])


def build(folder: Path, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`given`, as a component gets them, and what the kustomization of `folder` adds and changes."""
    content = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert content.keys() <= KNOWN, content.keys() - KNOWN
    assert content.get("generatorOptions") in (None, {"disableNameSuffixHash": True})
    documents = list(given)
    for name in content.get("resources", []):
        path = folder / name
        documents += build(path.resolve(), []) if path.is_dir() else yaml.safe_load_all(path.read_text())
    for generator in content.get("configMapGenerator", []):
        documents = config_map(documents, folder, generator)
    for name in content.get("components", []):
        documents = build((folder / name).resolve(), documents)
    for entry in content.get("patches", []):
        text = entry["patch"] if "patch" in entry else (folder / entry["path"]).read_text()
        documents = patched(documents, yaml.safe_load(text), entry.get("target"))
    for image in content.get("images", []):
        set_image(documents, image)
    return documents


def config_map(documents: list[dict[str, Any]], folder: Path, generator: dict[str, Any]) -> list[dict[str, Any]]:
    data = {Path(name).name: (folder / name).read_text() for name in generator["files"]}
    for document in documents:
        if document["kind"] == "ConfigMap" and document["metadata"]["name"] == generator["name"]:
            assert generator["behavior"] == "replace"
            document["data"] = data
            return documents
    assert generator.keys() <= {"name", "files", "options"}
    metadata = {"name": generator["name"], **generator.get("options", {})}
    return [*documents, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}]


def patched(documents: list[dict[str, Any]], patch: Any, target: dict[str, str] | None) -> list[dict[str, Any]]:
    if target is not None:
        assert target.keys() == {"kind"}
        return [jsonpatch.apply_patch(d, patch) if d["kind"] == target["kind"] else d for d in documents]
    same = [d for d in documents if (d["kind"], d["metadata"]["name"]) == (patch["kind"], patch["metadata"]["name"])]
    assert len(same) == 1
    merge(same[0], patch)
    return documents


def merge(into: dict[str, Any], patch: dict[str, Any]) -> None:
    for name, value in patch.items():
        assert not isinstance(value, list), "lists of custom resources are replaced as a whole; patch them by path"
        if isinstance(value, dict):
            merge(into.setdefault(name, {}), value)
        else:
            into[name] = copy.deepcopy(value)


def set_image(node: Any, image: dict[str, str]) -> None:
    if isinstance(node, list):
        for item in node:
            set_image(item, image)
    elif isinstance(node, dict):
        for container in [*(node.get("containers") or []), *(node.get("initContainers") or [])]:
            if container["image"] == image["name"]:
                container["image"] = f"{image['newName']}:{image['newTag']}"
        for value in node.values():
            set_image(value, image)
