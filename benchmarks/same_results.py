"""Compares the folders of two runs: every number and text in all kinds of files.

Values that differ between two undisturbed runs (times, rates) are left out and listed.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file

#: Tolerance relative to the largest number of a column: the effect of another order of sums over two cycles of training.
TOLERANCE = 1e-3
#: Mean difference of two pictures, in grey levels.
LEVELS = 1.0
#: Files with times in their names or contents, and Ray Tune's own files: only their existence is compared.
WHEN = ("tensorboard", "report.html", "tune")
#: Parts of summary keys that are about the last start only.
LAST_START = ("this_run", "per_second")

#: The content of a folder, by place: `file: key.key` or `file: column`.
Content = dict[str, Any]


def content_of(folder: Path) -> Content:
    """The values in all files below `folder`; of hidden files only the names."""
    found: Content = {}
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = file.relative_to(folder).as_posix()
        parts = name.split("/")
        if any(part.startswith(".") for part in parts):
            found[name] = "hidden"
        elif when := [place for place, part in enumerate(parts) if part in WHEN]:
            found["/".join(parts[: when[0] + 1])] = "there"
        else:
            said = {key: value for key, value in _said(file) if not any(word in key for word in LAST_START)}
            found |= {f"{name}: {key}": value for key, value in said.items()}
    return found


def differences(one: Content, other: Content) -> dict[str, float]:
    """The places where two folders differ, with the distance; infinite if only one folder has the place."""
    found = {place: float("inf") for place in one.keys() ^ other.keys()}
    for place in one.keys() & other.keys():
        if (far := _distance(one[place], other[place])) > 0:
            found[place] = far
    return found


def _said(file: Path) -> Iterator[tuple[str, Any]]:
    if file.suffix == ".parquet":
        table = pq.read_table(file)
        for column in table.column_names:
            yield column, _column(table[column])
    elif file.suffix == ".safetensors":
        for name, tensor in load_file(file).items():
            yield name, tensor.double().numpy()
    elif file.suffix == ".pt":
        yield from _leaves(torch.load(file, map_location="cpu", weights_only=True), "")
    elif file.suffix == ".json":
        yield from _leaves(json.loads(file.read_text()), "")
    elif file.suffix == ".jsonl":
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        yield "lines", len(lines)
        for i, line in enumerate(lines):
            yield from _leaves(line, f"{i}")
    elif file.suffix == ".png":
        yield "picture", _picture(file.read_bytes())
    else:
        yield "bytes", file.read_bytes()


def _column(column: pa.ChunkedArray) -> Any:
    values = column.to_pylist()
    if values and isinstance(values[0], bytes):
        try:
            return np.concatenate([_picture(value).ravel() for value in values]).astype(np.uint8)
        except OSError:
            return values
    flat = [number for value in values for number in (value if isinstance(value, list) else [value])]
    if flat and all(isinstance(number, float | int) for number in flat):
        return np.array(flat, float)
    return json.dumps(values, default=str)


def _picture(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(picture)


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _leaves(each, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list) and value and all(isinstance(each, float | int) for each in value):
        yield place, np.array(value, float)
    elif isinstance(value, list):
        yield f"{place}.length", len(value)
        for i, each in enumerate(value):
            yield from _leaves(each, f"{place}.{i}")
    elif isinstance(value, torch.Tensor):
        yield place, value.double().numpy()
    else:
        yield place, value


def _distance(one: Any, other: Any) -> float:
    """The distance of two values; 0 within the tolerance."""
    numbers = (int, float, np.ndarray)
    if not (isinstance(one, numbers) and isinstance(other, numbers)) or isinstance(one, bool):
        return 0.0 if one == other else float("inf")
    ours, theirs = np.asarray(one), np.asarray(other)
    if ours.shape != theirs.shape:
        return float("inf")
    if ours.dtype == np.uint8:
        far = float(np.abs(ours.astype(float) - theirs.astype(float)).mean()) if ours.size else 0.0
        return 0.0 if far <= LEVELS else far
    if np.array_equal(ours, theirs, equal_nan=True):
        return 0.0
    far = float(np.nanmax(np.abs(ours - theirs)) / max(1e-12, float(np.nanmax(np.abs(theirs)))))
    return 0.0 if far <= TOLERANCE else far
