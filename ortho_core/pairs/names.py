"""Usual names of a row's fields, one list for all formats. Case, spaces, dashes and underscores are ignored."""

import re
from collections.abc import Iterable

from ortho_core.pairs.rows import PairFields

#: Names of class labels, used only if no other prompt field exists.
CLASS_NAMES = ("label", "cls")
#: The first of these that a set has is the prompt.
USUAL_PROMPTS = (
    *("prompt", "text", "caption", "txt", "captions", "prompts", "texts", "description", "sentence", "sentences"),
    *("alt_text", "comment", *CLASS_NAMES),
)
#: The first of these that a set has is the image. URLs come last: most point outside the set.
USUAL_IMAGES = (
    *("image", "file_name", "image_path", "image_file", "image_name", "img", "img_path", "file_path", "path", "file"),
    *("jpg", "jpeg", "png", "webp", "image_bytes", "bytes", "url", "image_url"),
)


def plain(name: str) -> str:
    """A name in the form in which names are compared."""
    return re.sub(r"[\W_]+", "", name).lower()


def usual(fields: Iterable[str], names: tuple[str, ...]) -> list[str]:
    """The fields that have one of the usual names, in the order of `names`."""
    by_plain: dict[str, str] = {}
    for field in fields:
        by_plain.setdefault(plain(field), field)
    return [by_plain[key] for name in names if (key := plain(name)) in by_plain]


def names_of(
    columns: Iterable[str], fields: PairFields, first: tuple[str, ...] = ()
) -> tuple[str | None, str | None, str | None]:
    """The fields of prompt, image and id: those that the options name, else the usual ones; names in `first` are preferred.

    None for a missing field.
    """
    columns = list(columns)
    prompts, images = (
        usual(columns, (*(name for name in first if name in names), *names)) for names in (USUAL_PROMPTS, USUAL_IMAGES)
    )
    return (
        fields.prompt_field or (prompts[0] if prompts else None),
        (fields.image_field or (images[0] if images else None)) if fields.with_images else None,
        fields.id_field,
    )


def accepted(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + ", ..."
