"""The rows of a pair set: their fields, the checks that make a row usable, and their names."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from pydantic import BaseModel, BeforeValidator, ConfigDict

from ortho_core.errors import BadRow
from ortho_core.framing.frame import Frame
from ortho_core.marks import conduct, resolved
from ortho_core.pairs.captions import CaptionChoice, choose, texts_of
from ortho_core.pairs.hold_out import check_part
from ortho_core.pairs.limits import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, MAX_PROMPT_LENGTH, OPENED_PIXELS
from ortho_core.storage.location import Location
from ortho_core.text.plain_text import encodable, redacted


@dataclass(frozen=True)
class Failure:
    """A quarantined row and the reason."""

    sample_id: str
    row: int
    reason: str
    message: str
    #: The path of the row's image, or of the file that contains the row; relative to the pair set.
    image: str = ""

    def __post_init__(self) -> None:
        """Removes secrets of URLs and characters that cannot be encoded, because these texts are published."""
        for name in ("sample_id", "message", "image"):
            object.__setattr__(self, name, encodable(redacted(getattr(self, name))))


#: How the rows of a folder are stored; `ortho_core.pairs.layouts` has a module for each.
LayoutName = Literal["metadata", "parquet", "arrow", "webdataset", "labelled", "captions", "classes", "images"]


class ImageLimits(BaseModel):
    """Limits of an image. In a pair set, the row of a larger image is quarantined."""

    max_image_bytes: int = conduct(
        MAX_IMAGE_BYTES, ge=1, description="limit of an image file in bytes; a larger one is not read"
    )
    max_image_pixels: int = conduct(
        MAX_IMAGE_PIXELS,
        ge=1,
        le=OPENED_PIXELS,
        description="limit of an image in pixels; a larger one is not decoded",
    )


class PairFields(ImageLimits):
    """The options of a pair set: names of the fields (columns, members) of a row, and how the set is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Whether a row needs an image to be usable.
    with_images: ClassVar[bool] = True

    prompt_field: str | None = resolved(
        None,
        min_length=1,
        description="field with the prompt (none: prompt, text, caption or another usual name)",
    )
    image_field: str | None = resolved(
        None,
        min_length=1,
        description="field with the image or its path (none: image, file_name or another usual name)",
    )
    id_field: str | None = resolved(
        None, min_length=1, description="field with a unique id of the row (none: row number and image name)"
    )
    image_root: Location | None = resolved(
        None, description="folder or URL that image paths start from (none: that of the pair set)"
    )

    layout: LayoutName | None = resolved(
        None,
        description="how to read a folder that can be read in several ways (none: the only one without a reason against it)",
    )
    split: str | None = resolved(
        None, min_length=1, description="split to read, named by folders or files: train, test, ... (none: all)"
    )
    caption: CaptionChoice | None = resolved(
        None,
        description="which caption to use if a row has several, in a list or as the lines of a text file; all: a row for "
        "each (none: the first of a list; a text file is one caption)",
    )
    prompt: str | None = resolved(None, min_length=1, description="one prompt for all images, if they have no captions")

    max_prompt_length: int = conduct(
        MAX_PROMPT_LENGTH, ge=1, description="limit of a prompt in characters; a row with a longer one is quarantined"
    )

    part: Annotated[str | None, BeforeValidator(check_part)] = resolved(
        None,
        description="part of the rows, chosen by their numbers: heldout:5% or heldout:200, rows from the whole set; "
        "training:5% or training:200, all other rows (none: all rows)",
    )

    def pair_fields(self) -> "PairFields":
        """Only these fields, taken from a job's options."""
        return PairFields(**{name: getattr(self, name) for name in PairFields.model_fields})


class PromptFields(PairFields):
    """Rows of prompts; images of the rows are ignored."""

    with_images: ClassVar[bool] = False


#: The fields of prompt, image (None: rows have no image) and id (None: rows have no id).
Names = tuple[str, str | None, str | None]


@dataclass(frozen=True)
class Pair:
    """One usable row. `image` is the path or reference that records store and `PairSet.fetch` reads; `content` is the image file
    if the row contains it."""

    sample_id: str
    row: int
    prompt: str
    image: str
    content: bytes | None = field(default=None, repr=False)
    #: 64 bits of a hash of the image's pixels; None before it is decoded.
    pixels: int | None = None
    #: The part of the image that is seen, and its size; None before it is decoded.
    frame: Frame | None = None


@dataclass(frozen=True)
class Shard:
    """A run of consecutive rows: rows `first` to `first + rows - 1`, starting at `offset` (a byte or a row) of `file`.

    `skip` captions of the first record belong to the previous shard; it is 0 unless each caption is a row. In a part of a set, a
    shard spans records of the other part too, and continues in `rest` if its rows are far apart.
    """

    index: int
    first: int
    #: Number of rows, including those in `rest`.
    rows: int
    file: str
    offset: int
    skip: int = 0
    #: Number of records that it spans, if some are of another part; None: equal to its rows.
    over: int | None = None
    #: Number of its first record; None: that of its first row.
    record: int | None = None
    #: The pieces where it continues, each with its own rows.
    rest: tuple["Shard", ...] = ()

    @property
    def span(self) -> int:
        """Largest number of records that are read for it."""
        return self.rows if self.over is None else self.over

    @property
    def first_record(self) -> int:
        return self.first if self.record is None else self.record

    @property
    def runs(self) -> tuple["Shard", ...]:
        """Its consecutive pieces, each with its own rows."""
        if not self.rest:
            return (self,)
        return replace(self, rows=self.rows - sum(run.rows for run in self.rest), rest=()), *self.rest

    @staticmethod
    def joined(index: int, runs: Collection["Shard"]) -> "Shard":
        """One shard of several pieces."""
        first, *rest = runs
        return replace(first, index=index, rows=sum(run.rows for run in runs), rest=tuple(rest))

    def shortened(self, rows: int) -> "Shard":
        """A shard of at most its first `rows` rows."""
        runs = []
        for run in self.runs:
            if rows > 0:
                runs.append(replace(run, rows=min(run.rows, rows)))
                rows -= run.rows
        return Shard.joined(self.index, runs)


#: A row as it is read: the pair, or (row number, fault).
Row = Pair | tuple[int, BadRow]


@dataclass(frozen=True)
class Cut:
    """Some records of one file, before they get numbers in the whole set."""

    file: str
    rows: int
    offset: int


class PairRecord(NamedTuple):
    """One record as a format reads it. Its values are not checked yet and may be of any type."""

    #: A text, or several to choose from.
    prompt: Any
    #: A path or URL, or a reference for `Format.fetch` if the image is inside the files of rows.
    image: Any
    #: Names of the fields in messages.
    names: Names
    id: Any = None
    content: bytes | None = None
    #: Part of the row's name, instead of the image's file name.
    stem: str | None = None
    #: All fields of the record, for messages.
    fields: Collection[str] = ()


@runtime_checkable
class Format(Protocol):
    """How records are stored. Only the process that opened the set can count and cut; `read` and `fetch` work in any process."""

    def signature(self) -> str:
        """A text that changes when the records change; image files that records refer to count by their names."""
        ...

    def rows(self) -> int: ...

    def cuts(self, rows: int) -> Iterator[Cut]:
        """Each record once, in order, at most `rows` per cut. The result depends only on the input."""
        ...

    def read(self, shard: Shard) -> Iterator[PairRecord | BadRow]:
        """The records from the shard's offset on, as many as its span; fewer if its file ends."""
        ...

    def prompts(self, shard: Shard) -> Iterator[Any]:
        """The prompt values of these records, without reading images; one per record."""
        ...

    def ids(self, shard: Shard) -> Iterator[Any]:
        """The id values of these records; one per record."""
        ...

    def fetch(self, image: str) -> bytes | None:
        """The bytes of an image inside the files of rows, by its reference in `Pair.image`; None if that is a path.

        Raises BadRow, OutsideRoot or OSError.
        """
        ...


class RecordsHaveAll:
    """Base of formats whose records contain no image bytes: prompts and ids are read with the records."""

    def read(self, shard: Shard) -> Iterator[PairRecord | BadRow]:
        raise NotImplementedError

    def prompts(self, shard: Shard) -> Iterator[Any]:
        for record in self.read(shard):
            yield None if isinstance(record, BadRow) else record.prompt

    def ids(self, shard: Shard) -> Iterator[Any]:
        for record in self.read(shard):
            yield None if isinstance(record, BadRow) else record.id


def make_pair(
    row: int,
    record: PairRecord,
    choice: CaptionChoice | None = None,
    number: int = 0,
    most: int = MAX_PROMPT_LENGTH,
) -> Pair:
    """The pair of one row. `choice` selects one of several captions; for `all` it is caption `number`. `most` is the limit of the
    prompt in characters. Raises BadRow.
    """
    prompt_field, image_field, id_field = record.names
    prompt, image = record.prompt, record.image
    several = [] if isinstance(prompt, str) or not isinstance(prompt, list | tuple) else texts_of(prompt)
    if not several and not (isinstance(prompt, str) and prompt.strip()):
        message = f"row {row}: field {prompt_field!r} is {_found(prompt)}, not a text{_there(record)}"
        raise BadRow("missing-prompt", message)
    if image_field is not None and not (isinstance(image, str) and image):
        message = f"row {row}: field {image_field!r} is {_found(image)}, not a path{_there(record)}"
        raise BadRow("missing-image", message)
    image = image or ""
    stem = record.stem or stem_of(image)
    sample_id = f"{row:06d}_{stem}" if stem else f"{row:06d}"
    if id_field is not None:
        sample_id = numbered_id(row, record.id, id_field, number)
    if several:
        prompt = several[number] if choice == "all" else choose(several, choice or "first", sample_id)
    if len(prompt) > most:
        message = f"row {row}: the prompt has {len(prompt)} characters; accepted: {most} (--max-prompt-length raises the limit)"
        raise BadRow("too-long-prompt", message)
    try:
        (prompt + image + sample_id).encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair: valid JSON, but not valid text
        raise BadRow("not-text", f"row {row} contains characters that are not Unicode text: {error}") from error
    return Pair(sample_id, row, prompt, image, record.content)


def stem_of(path: str) -> str:
    """The file name of a path without its suffix, as `pathlib` gives it, whose objects would be the slowest part of a row."""
    name = path.replace("\\", "/").rpartition("/")[2]
    if name in ("", "."):
        return PurePosixPath(path.replace("\\", "/")).stem
    dot = name.rfind(".")
    return name[:dot] if 0 < dot < len(name) - 1 else name


def row_name(image: str, sample_id: str) -> str:
    """The name of a row in messages to the user: the image's path or URL, or the file of rows and the place in it."""
    file, sign, place = image.rpartition("#")
    if not image:
        return sample_id
    if sign and re.fullmatch(r"\d+\+\d+", place):  # bytes of a tar file
        return f"{file}, sample {sample_id}"
    return f"{file}, row {place}" if sign and place.isdecimal() else image


def numbered_id(row: int, value: Any, id_field: str | None, number: int = 0) -> str:
    """The id of a record, followed by the number of the caption unless that is 0. Raises BadRow if `value` is not an id."""
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise BadRow("missing-id", f"row {row}: field {id_field!r} is {_found(value)}, not a text or number")
    return f"{value}#{number}" if number else str(value)


def _found(value: Any) -> str:
    return "missing" if value is None else repr(value)[:60]


def _there(record: PairRecord) -> str:
    return f" (the row has {', '.join(sorted(record.fields))[:200]})" if record.fields else ""
