"""Small sets of labelled images in every kind of file, written byte by byte."""

import gzip
import io
import json
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def grey(n: int, size: int = 28, seed: int = 0) -> np.ndarray:
    """(n, size, size) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (n, size, size), dtype=np.uint8)


def colour(n: int, size: int = 32, seed: int = 0) -> np.ndarray:
    """(n, size, size, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def labels_of(n: int, classes: int = 10) -> np.ndarray:
    return (np.arange(n) * 7 + 3) % classes


def write_idx(folder: Path, split: str, images: np.ndarray, labels: np.ndarray, zipped: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    n, Y, X = images.shape
    files = {
        f"{split}-images-idx3-ubyte": struct.pack(">IIII", 0x803, n, Y, X) + images.tobytes(),
        f"{split}-labels-idx1-ubyte": struct.pack(">II", 0x801, len(labels)) + labels.astype(np.uint8).tobytes(),
    }
    for name, content in files.items():
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    return folder


def write_cifar(file: Path, images: np.ndarray, labels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        for image, label in zip(images, labels, strict=True):
            stream.write(bytes([label]))
            for plane in range(3):
                stream.write(image[:, :, plane].tobytes())


def write_sheets(folder: Path, split: str, sheets: dict[str, np.ndarray], labels: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, images in sheets.items():
        Image.fromarray(images.reshape(len(images), -1, 3)).save(folder / name)
    (folder / f"{split}_lables.json").write_text(json.dumps(labels.tolist()))


def write_class_json(folder: Path, label: int, images: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [image.flatten().tolist() for image in images]
    (folder / f"{label}.json").write_text(json.dumps({"data": [*rows, []]}))


def write_folders(folder: Path, images: np.ndarray, labels: np.ndarray, names: list[str]) -> None:
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / names[label] / f"{i:04d}.png")


def write_labelled_parquet(file: Path, images: np.ndarray, labels: np.ndarray, names: list[str] | None) -> None:
    """As the `datasets` library writes a set of an Image and a ClassLabel feature."""
    file.parent.mkdir(parents=True, exist_ok=True)
    contents = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        contents.append({"bytes": stream.getvalue(), "path": None})
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    table = pa.table({"image": contents, "label": pa.array(labels, pa.int64())})
    if names is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, file)
