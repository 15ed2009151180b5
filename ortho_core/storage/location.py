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
    """Part of a type: its values are places, save those that `names`, a regular expression, matches as a whole.

    A blank place is refused. The validation's context may bring `expand`, which reads `~` and variables in it.
    """

    names: str | None = None
    #: Of a `source`, a pair set or a model, everything in the folder is part of it; an `output` is written.
    role: Literal["source", "output"] | None = None
    #: Whether a path that exists is a place though it looks like one of the names; it is read as `./PATH`.
    existing_first: bool = False

    def is_place(self, value: object) -> bool:
        return isinstance(value, str | Path) and not (self.names and re.fullmatch(self.names, str(value)))

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_before_validator_function(
            lambda given, info: self.read(given, info.context),
            handler(source),
            # What is kept and shown of a place has no password; what is computed with has.
            serialization=core_schema.wrap_serializer_function_ser_schema(
                lambda place, serialize: redacted_all(serialize(place)), when_used="json"
            ),
        )

    def read(self, given: object, context: Mapping[str, Callable[[str], str] | None] | None) -> Any:
        """What an option was given, as a place. Raises PydanticCustomError if it is blank, and what `expand` raises."""
        if isinstance(given, str):
            remember(given)
        if not self.is_place(given):
            is_path = self.existing_first and isinstance(given, str) and os.path.lexists(given)
            return f"./{given}" if is_path else given
        text = str(given)
        if not text.strip():
            raise PydanticCustomError("empty_path", "an empty path is not accepted")
        expand = context.get("expand") if context else None
        return expand(text) if expand else text


def place_name(place: str | Path) -> str:
    """What people call a place, wherever it lies: the last part of a path or URL, that of a file after its folder's."""
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
#: The folder of a model, and where a pair set is.
ModelPath = Annotated[Path, Place(role="source")]
PairsLocation = Annotated[str, Place(role="source")]
#: What a run writes.
OutputPath = Annotated[Path, Place(role="output")]
OutputLocation = Annotated[str, Place(role="output")]
