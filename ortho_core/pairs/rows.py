"""One row of a pair set: its fields, what makes it usable, its name."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, ClassVar, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict

from ortho_core.errors import BadRow
from ortho_core.marks import resolved
from ortho_core.storage.location import Location


@dataclass(frozen=True)
class Failure:
    """A quarantined row and why."""

    sample_id: str
    row: int
    reason: str
    message: str


class PairFields(BaseModel):
    """Which fields (columns, members) of a row hold what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Whether a row needs an image to be usable.
    with_images: ClassVar[bool] = True

    prompt_field: str | None = resolved(
        None, min_length=1, description="field that holds the prompt (none: prompt; text, txt or caption where usual)"
    )
    image_field: str | None = resolved(
        None, min_length=1, description="field that holds the image or its path (none: image; file_name where usual)"
    )
    id_field: str | None = resolved(
        None, min_length=1, description="field that holds a row's own unique id (none: row number and image name)"
    )
    image_root: Location | None = resolved(
        None, description="folder or URL that image paths start from (none: the pair set's own)"
    )

    def pair_fields(self) -> "PairFields":
        """These fields alone, from a job that has them among its own."""
        return PairFields(**{name: getattr(self, name) for name in PairFields.model_fields})


class PromptFields(PairFields):
    """Rows that are prompts alone; an image that they may have is not looked at."""

    with_images: ClassVar[bool] = False


#: The fields of prompt, image (None: rows have none) and id (None: rows bring none).
Names = tuple[str, str | None, str | None]


@dataclass(frozen=True)
class Pair:
    """One usable row. `image` is what a record remembers and `PairSet.fetch` understands; `content` is the image file
    itself where the row carries it."""

    sample_id: str
    row: int
    prompt: str
    image: str
    content: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Shard:
    """A run of consecutive rows: rows `first` to `first + rows - 1`, starting at `offset` (a byte or a row) of `file`."""

    index: int
    first: int
    rows: int
    file: str
    offset: int


#: A row as a format reads it: the pair, or (its number, what is wrong with it).
Row = Pair | tuple[int, BadRow]


@dataclass(frozen=True)
class Cut:
    """Some rows of one file, before they have a number in the whole set."""

    file: str
    rows: int
    offset: int


@runtime_checkable
class Format(Protocol):
    """How rows are kept. What is counted or cut stays in the process that asked; `read` and `fetch` work anywhere."""

    def signature(self) -> str:
        """What changes when the rows change; image files that rows only name count by their names."""
        ...

    def rows(self) -> int: ...

    def cuts(self, rows: int) -> Iterator[Cut]:
        """Every row once, in order, at most `rows` to a cut; depends on the input alone."""
        ...

    def read(self, shard: Shard) -> Iterator[Row]: ...

    def ids(self, shard: Shard) -> Iterator[Any]:
        """What each row's id field holds, as it is; one per row."""
        ...

    def fetch(self, image: str) -> bytes | None:
        """The bytes of an image inside the rows' own files, by what `Pair.image` says; None if that is a path.

        Raises BadRow, OutsideRoot or OSError.
        """
        ...


def make_pair(
    row: int,
    values: Mapping[str, Any],
    names: Names,
    image: str | None = None,
    content: bytes | None = None,
) -> Pair:
    """Validate one row's values. `names` are the fields of prompt, image and id; `image` and `content` are given where
    the image is not a path in its field. Raises BadRow.
    """
    prompt_field, image_field, id_field = names
    prompt = values.get(prompt_field)
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadRow("missing-prompt", f"row {row}: field {prompt_field!r} is {_found(prompt)}, not a text")
    if image_field is None:
        image = ""
    elif image is None:
        image = values.get(image_field)
        if not isinstance(image, str) or not image:
            raise BadRow("missing-image", f"row {row}: field {image_field!r} is {_found(image)}, not a path")
    stem = values.get("__stem__") or PurePosixPath(image).stem
    sample_id = f"{row:06d}_{stem}" if stem else f"{row:06d}"
    if id_field is not None:
        sample_id = own_id(row, values.get(id_field), id_field)
    try:
        (prompt + image + sample_id).encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair: valid JSON, but no text
        raise BadRow("not-text", f"row {row} holds characters that are not Unicode text: {error}") from error
    return Pair(sample_id, row, prompt, image, content)


def own_id(row: int, own: Any, id_field: str | None) -> str:
    """The id that a row brings. Raises BadRow if it is none."""
    if isinstance(own, bool) or not isinstance(own, str | int) or own == "":
        raise BadRow("missing-id", f"row {row}: field {id_field!r} is {_found(own)}, not a text or number")
    return str(own)


def _found(value: Any) -> str:
    return "missing" if value is None else repr(value)[:60]
