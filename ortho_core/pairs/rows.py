"""One row of a pair set: its fields, what makes it usable, its name."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

from pydantic import BaseModel, BeforeValidator, ConfigDict

from ortho_core.errors import BadRow
from ortho_core.marks import conduct, resolved
from ortho_core.pairs.captions import CaptionChoice, choose, texts_of
from ortho_core.pairs.hold_out import check_part
from ortho_core.pairs.limits import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, MAX_PROMPT_LENGTH, OPENED_PIXELS
from ortho_core.storage.location import Location
from ortho_core.text.plain_text import encodable, redacted


@dataclass(frozen=True)
class Failure:
    """A quarantined row and why."""

    sample_id: str
    row: int
    reason: str
    message: str
    #: What the row calls its image, or the file that the row is in; relative to the pair set.
    image: str = ""

    def __post_init__(self) -> None:
        """What is published of a row can be written, and has no secret of a URL."""
        for name in ("sample_id", "message", "image"):
            object.__setattr__(self, name, encodable(redacted(getattr(self, name))))


#: How the rows of a folder are kept; `ortho_core.pairs.layouts` has a module for each.
LayoutName = Literal["metadata", "parquet", "arrow", "webdataset", "labelled", "captions", "classes", "images"]


class ImageLimits(BaseModel):
    """What an image may cost; of a pair set, the row of a larger one is quarantined."""

    max_image_bytes: int = conduct(
        MAX_IMAGE_BYTES, ge=1, description="bytes of an image file; a larger one is not read"
    )
    max_image_pixels: int = conduct(
        MAX_IMAGE_PIXELS,
        ge=1,
        le=OPENED_PIXELS,
        description="pixels of an image; a larger one is not decoded",
    )


class PairFields(ImageLimits):
    """Which fields (columns, members) of a row hold what."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Whether a row needs an image to be usable.
    with_images: ClassVar[bool] = True

    prompt_field: str | None = resolved(
        None,
        min_length=1,
        description="field that holds the prompt (none: prompt, text, caption or another usual name)",
    )
    image_field: str | None = resolved(
        None,
        min_length=1,
        description="field that holds the image or its path (none: image, file_name or another usual name)",
    )
    id_field: str | None = resolved(
        None, min_length=1, description="field that holds a row's own unique id (none: row number and image name)"
    )
    image_root: Location | None = resolved(
        None, description="folder or URL that image paths start from (none: the pair set's own)"
    )

    layout: LayoutName | None = resolved(
        None,
        description="how to read a folder that can be read in several ways (none: the one that nothing speaks against)",
    )
    split: str | None = resolved(
        None, min_length=1, description="split to read, by the names of folders or files: train, test, ... (none: all)"
    )
    caption: CaptionChoice | None = resolved(
        None,
        description="which of a row's several captions, in a list or as the lines of a text file; all: a row for each "
        "(none: the first of a list, a text file as one)",
    )
    prompt: str | None = resolved(
        None, min_length=1, description="the prompt of all images, where they have no captions"
    )

    max_prompt_length: int = conduct(
        MAX_PROMPT_LENGTH, ge=1, description="characters of a prompt; a row with a longer one is quarantined"
    )

    part: Annotated[str | None, BeforeValidator(check_part)] = resolved(
        None,
        description="part of the rows, which goes by their numbers: heldout:5% or heldout:200, rows from all over the set; "
        "training:5% or training:200, all but those (none: every row)",
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
    #: 64 bits of a hash of the image's pixels, once it is decoded.
    pixels: int | None = None


@dataclass(frozen=True)
class Shard:
    """A run of consecutive rows: rows `first` to `first + rows - 1`, starting at `offset` (a byte or a row) of `file`.

    `skip` captions of the first record belong to the shard before; it is 0 unless every caption is a row. Of a part of a set, a
    shard runs over more rows than it has, and goes on elsewhere where they lie far apart.
    """

    index: int
    first: int
    #: Rows of it, those elsewhere included.
    rows: int
    file: str
    offset: int
    skip: int = 0
    #: Records that it runs over, where some of them are of another part; none: as many as it has rows.
    over: int | None = None
    #: Number of its first record; none: that of its first row.
    record: int | None = None
    #: Where it goes on; each has its own rows.
    rest: tuple["Shard", ...] = ()

    @property
    def span(self) -> int:
        """Records that are read of it, at most."""
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
        """Its first rows, at most so many."""
        runs = []
        for run in self.runs:
            if rows > 0:
                runs.append(replace(run, rows=min(run.rows, rows)))
                rows -= run.rows
        return Shard.joined(self.index, runs)


#: A row as it is read: the pair, or (its number, what is wrong with it).
Row = Pair | tuple[int, BadRow]


@dataclass(frozen=True)
class Cut:
    """Some records of one file, before they have a number in the whole set."""

    file: str
    rows: int
    offset: int


class PairRecord(NamedTuple):
    """What a format finds in one place: values that may be anything, since nobody has checked them."""

    #: A text, or several to choose from.
    prompt: Any
    #: A path or URL, or what `Format.fetch` understands where the image is inside the rows' own files.
    image: Any
    #: What the fields are called in messages.
    names: Names
    id: Any = None
    content: bytes | None = None
    #: Names the row, where the image's file name does not.
    stem: str | None = None
    #: All fields that the record has, for messages.
    fields: Collection[str] = ()


@runtime_checkable
class Format(Protocol):
    """How records are kept. What is counted or cut stays in the process that asked; `read` and `fetch` work anywhere."""

    def signature(self) -> str:
        """What changes when the records change; image files that records only name count by their names."""
        ...

    def rows(self) -> int: ...

    def cuts(self, rows: int) -> Iterator[Cut]:
        """Every record once, in order, at most `rows` to a cut; depends on the input alone."""
        ...

    def read(self, shard: Shard) -> Iterator[PairRecord | BadRow]:
        """The records from the shard's offset on, as many as its span; fewer if its file ends."""
        ...

    def prompts(self, shard: Shard) -> Iterator[Any]:
        """What each of these records has as its prompt, without its image; one per record."""
        ...

    def ids(self, shard: Shard) -> Iterator[Any]:
        """What each of these records has as its id; one per record."""
        ...

    def fetch(self, image: str) -> bytes | None:
        """The bytes of an image inside the rows' own files, by what `Pair.image` says; None if that is a path.

        Raises BadRow, OutsideRoot or OSError.
        """
        ...


class RecordsHaveAll:
    """For formats whose records hold no image: the prompts and ids are read as the records are."""

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
    """The pair of one row; of several captions the one that `choice` takes, where that is all of them the one of this
    number, of at most so many characters. Raises BadRow.
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
        said = f"row {row}: the prompt has {len(prompt)} characters; accepted: {most} (--max-prompt-length raises the limit)"
        raise BadRow("too-long-prompt", said)
    try:
        (prompt + image + sample_id).encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair: valid JSON, but no text
        raise BadRow("not-text", f"row {row} holds characters that are not Unicode text: {error}") from error
    return Pair(sample_id, row, prompt, image, record.content)


def stem_of(path: str) -> str:
    """The name of a path's file without its suffix, as `pathlib` has it, whose objects take longer than all else of a row."""
    name = path.replace("\\", "/").rpartition("/")[2]
    if name in ("", "."):
        return PurePosixPath(path.replace("\\", "/")).stem
    dot = name.rfind(".")
    return name[:dot] if 0 < dot < len(name) - 1 else name


def row_name(image: str, sample_id: str) -> str:
    """A row as its owner finds it again: the image's path or URL, or the file of rows and its place in that."""
    file, sign, place = image.rpartition("#")
    if not image:
        return sample_id
    if sign and re.fullmatch(r"\d+\+\d+", place):  # bytes of a tar file
        return f"{file}, sample {sample_id}"
    return f"{file}, row {place}" if sign and place.isdecimal() else image


def numbered_id(row: int, own: Any, id_field: str | None, number: int = 0) -> str:
    """The id that a record brings, with the number of the caption but for the first. Raises BadRow if it is none."""
    if isinstance(own, bool) or not isinstance(own, str | int) or own == "":
        raise BadRow("missing-id", f"row {row}: field {id_field!r} is {_found(own)}, not a text or number")
    return f"{own}#{number}" if number else str(own)


def _found(value: Any) -> str:
    return "missing" if value is None else repr(value)[:60]


def _there(record: PairRecord) -> str:
    return f" (the row has {', '.join(sorted(record.fields))[:200]})" if record.fields else ""
