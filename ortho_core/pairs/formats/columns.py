"""Files of columns (Parquet, Arrow): which column holds what, and a row of them as a record."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from ortho_core.errors import BadRow, UserError
from ortho_core.pairs.names import USUAL_IMAGES, USUAL_PROMPTS, accepted, usual
from ortho_core.pairs.rows import Names, PairFields, PairRecord
from ortho_core.text.parsing import parse_json

#: The file whose image paths start from its own folder, as those of metadata.jsonl do.
METADATA_PARQUET = "metadata.parquet"


def columns_of(schema: pa.Schema, fields: PairFields, file: str) -> Names:
    """The columns of prompt, image and id: as the options name them, else the usual ones; of images bytes before paths.

    Raises UserError if there are none of such a name.
    """

    def column(given: str | None, names: tuple[str, ...], what: str) -> str:
        found = usual(schema.names, names) if given is None else [given] if given in schema.names else []
        if not found:
            raise UserError(
                f"{file} has no column {given or accepted(names)!r}; it has {', '.join(schema.names)} (--{what}-field names one)"
            )
        return next((name for name in found if what == "image" and holds_bytes(schema.field(name).type)), found[0])

    image = column(fields.image_field, USUAL_IMAGES, "image") if fields.with_images else None
    prompt = column(fields.prompt_field, USUAL_PROMPTS, "prompt")
    return prompt, image, column(fields.id_field, (), "id") if fields.id_field else None


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column holds image files, by themselves or in `{bytes, path}` structs."""
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def record_of(
    values: dict[str, Any], names: Names, reference: str, path_of: Callable[[Any], Any] | None = None
) -> PairRecord:
    """The record of one row; `reference` is how a record names image bytes that lie in the row, `path_of` makes a path that
    starts from the set's folder of one that is written."""
    prompt, image, own = names
    found = values.get(image) if image is not None else None
    stem = None
    if isinstance(found, dict):
        inner, path = found.get("bytes"), found.get("path")
        if isinstance(inner, bytes):
            found, stem = inner, stem_of(path)
        elif isinstance(path, str):
            found = path
    identity = values.get(own) if own is not None else None
    if isinstance(found, bytes):
        return PairRecord(values.get(prompt), reference, names, identity, found, stem)
    return PairRecord(values.get(prompt), found if path_of is None else path_of(found), names, identity)


def stem_of(path: Any) -> str | None:
    """The file name of a path without its extension."""
    return path.replace("\\", "/").rpartition("/")[2].rpartition(".")[0] or None if isinstance(path, str) else None


def class_names(schema: pa.Schema, column: str) -> list[str]:
    """The names by number that the `datasets` library keeps of a column of classes; none of any other column."""
    try:
        kept = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"][column]["names"]
    except (ValueError, KeyError, TypeError):
        return []
    return kept if isinstance(kept, list) and all(isinstance(name, str) for name in kept) else []


def class_as_text(prompt: Any, classes: list[str]) -> Any:
    """A class number as a text; a text as it is."""
    if isinstance(prompt, bool) or not isinstance(prompt, int):
        return prompt
    return classes[prompt] if 0 <= prompt < len(classes) else str(prompt)


def value_of(scalar: pa.Scalar, name: str) -> Any:
    """Raises BadRow for text that is no text: nobody checks what a writer says is UTF-8."""
    try:
        return scalar.as_py()
    except (UnicodeDecodeError, pa.ArrowException) as error:
        raise BadRow("not-text", f"column {name!r} is not Unicode text: {error}") from error


def values_of(column: pa.Array, name: str) -> list[Any]:
    """The values of a column, and a BadRow in the place of what is no text."""
    try:
        return list(column.to_pylist())
    except (UnicodeDecodeError, pa.ArrowException):
        return [_value_or_bad(scalar, name) for scalar in column]


def _value_or_bad(scalar: pa.Scalar, name: str) -> Any:
    try:
        return value_of(scalar, name)
    except BadRow as bad:
        return bad
