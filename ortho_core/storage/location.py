"""Types of options whose values are places: local paths and URLs."""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from ortho_core.text.plain_text import redacted_all, remember


@dataclass(frozen=True)
class Place:
    """Annotation of a type whose values are places. Values that `names` (a regular expression) matches fully are not places.

    A blank place is refused. The validation's context may contain `expand`, a function that expands `~` and variables.
    """

    names: str | None = None
    #: `source`: a pair set or a model; all files of the folder are part of it. `output`: the run writes it.
    role: Literal["source", "output"] | None = None
    #: Whether an existing path is a place although `names` matches it; it is read as `./PATH`.
    existing_first: bool = False

    def is_place(self, value: object) -> bool:
        return isinstance(value, str | Path) and not (self.names and re.fullmatch(self.names, str(value)))

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_before_validator_function(
            lambda value, info: self.read(value, info.context),
            handler(source),
            # Stored and displayed places have no password; the value in memory keeps it.
            serialization=core_schema.wrap_serializer_function_ser_schema(
                lambda place, serialize: redacted_all(serialize(place)), when_used="json"
            ),
        )

    def read(self, value: object, context: Mapping[str, Callable[[str], str] | None] | None) -> Any:
        """The value of an option as a place. Raises PydanticCustomError if it is blank, and any error of `expand`."""
        if isinstance(value, str):
            remember(value)
        if not self.is_place(value):
            is_path = self.existing_first and isinstance(value, str) and os.path.lexists(value)
            return f"./{value}" if is_path else value
        text = str(value)
        if not text.strip():
            raise PydanticCustomError("empty_path", "an empty path is not accepted")
        expand = context.get("expand") if context else None
        return expand(text) if expand else text


def place_name(place: str | Path) -> str:
    """A short name of a place: the last part of its path or URL; for a file, the last two (folder and file)."""
    text = str(place)
    if "://" in text:
        url = urlsplit(text)
        parts = [url.hostname or "", *filter(None, url.path.split("/"))]
    else:
        parts = [*Path(text).absolute().parts]
    return "/".join(parts[-2:] if re.search(r"\.[a-z]+$", parts[-1]) else parts[-1:])


#: A local path.
LocalPath = Annotated[Path, Place()]
#: A local path or a URL; always a string.
Location = Annotated[str, Place()]
#: The folder of a model, and the place of a pair set.
ModelPath = Annotated[Path, Place(role="source")]
PairsLocation = Annotated[str, Place(role="source")]
#: Outputs of a run.
OutputPath = Annotated[Path, Place(role="output")]
OutputLocation = Annotated[str, Place(role="output")]
