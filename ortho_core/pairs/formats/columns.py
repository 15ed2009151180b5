"""Columns of Parquet and Arrow files: select the columns of prompt, image and id, and convert a row to a record."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from ortho_core.errors import BadRow, UserError
from ortho_core.pairs.names import USUAL_IMAGES, USUAL_PROMPTS, accepted, usual
from ortho_core.pairs.rows import Names, PairFields, PairRecord
from ortho_core.text.parsing import parse_json

#: A file whose image paths are relative to its own folder, like those of metadata.jsonl.
METADATA_PARQUET = "metadata.parquet"


def columns_of(schema: pa.Schema, fields: PairFields, file: str) -> Names:
    """The columns of prompt, image and id: those that the options name, else usual ones; image bytes are preferred to paths.

    Raises UserError if there is no such column.
    """

    def column(chosen: str | None, names: tuple[str, ...], role: str) -> str:
        columns = usual(schema.names, names) if chosen is None else [chosen] if chosen in schema.names else []
        if not columns:
            raise UserError(
                f"{file} has no column {chosen or accepted(names)!r}; it has {', '.join(schema.names)} (--{role}-field names one)"
            )
        return next((name for name in columns if role == "image" and holds_bytes(schema.field(name).type)), columns[0])

    image = column(fields.image_field, USUAL_IMAGES, "image") if fields.with_images else None
    prompt = column(fields.prompt_field, USUAL_PROMPTS, "prompt")
    return prompt, image, column(fields.id_field, (), "id") if fields.id_field else None


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column contains image files, as bytes or in `{bytes, path}` structs."""
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def record_of(
    values: dict[str, Any], names: Names, reference: str, path_of: Callable[[Any], Any] | None = None
) -> PairRecord:
    """The record of one row. `reference` is the record's name for image bytes inside the row; `path_of` makes a written path
    relative to the set's folder."""
    prompt, image, id_field = names
    picture = values.get(image) if image is not None else None
    stem = None
    if isinstance(picture, dict):
        inner, path = picture.get("bytes"), picture.get("path")
        if isinstance(inner, bytes):
            picture, stem = inner, stem_of(path)
        elif isinstance(path, str):
            picture = path
    identity = values.get(id_field) if id_field is not None else None
    if isinstance(picture, bytes):
        return PairRecord(values.get(prompt), reference, names, identity, picture, stem)
    return PairRecord(values.get(prompt), picture if path_of is None else path_of(picture), names, identity)


def stem_of(path: Any) -> str | None:
    """The file name of a path without its extension."""
    return path.replace("\\", "/").rpartition("/")[2].rpartition(".")[0] or None if isinstance(path, str) else None


def class_names(schema: pa.Schema, column: str) -> list[str]:
    """The class names by number that the `datasets` library stores for a column of classes; empty for any other column."""
    try:
        stored = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return []
    return stored if isinstance(stored, list) and all(isinstance(name, str) for name in stored) else []


def class_as_text(prompt: Any, classes: list[str]) -> Any:
    """A class number as text; any other value unchanged."""
    if isinstance(prompt, bool) or not isinstance(prompt, int):
        return prompt
    return classes[prompt] if 0 <= prompt < len(classes) else str(prompt)


def value_of(scalar: pa.Scalar, name: str) -> Any:
    """The value of a scalar. Raises BadRow for invalid UTF-8, which writers do not check."""
    try:
        return scalar.as_py()
    except (UnicodeDecodeError, pa.ArrowException) as error:
        raise BadRow("not-text", f"column {name!r} is not Unicode text: {error}") from error


def values_of(column: pa.Array, name: str) -> list[Any]:
    """The values of a column, with a BadRow instead of each invalid text."""
    try:
        return list(column.to_pylist())
    except (UnicodeDecodeError, pa.ArrowException):
        return [_value_or_bad(scalar, name) for scalar in column]


def _value_or_bad(scalar: pa.Scalar, name: str) -> Any:
    try:
        return value_of(scalar, name)
    except BadRow as bad:
        return bad
