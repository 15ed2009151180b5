"""What describes adapters, without PyTorch: the shape of one that is trained, and files of others that are added to a model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ortho_core.storage.location import LocalPath


@dataclass(frozen=True)
class Lora:
    """An adapter of rank `rank`, scaled by `alpha / rank`, on each module whose dotted name ends in one of `targets`."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")


class AddedLora(BaseModel):
    """A LoRA that is added to a model's weights, times `weight`; `file` is its file or its folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: LocalPath
    weight: float = Field(1.0, allow_inf_nan=False)


def _read_one(given: str) -> dict[str, Any]:
    """`FILE` or `FILE:WEIGHT`; what follows the last colon is a part of the name where it is no number."""
    file, colon, weight = given.strip().rpartition(":")
    try:
        number = float(weight)
    except ValueError:
        return {"file": given.strip()}
    if not (colon and file and math.isfinite(number)):
        return {"file": given.strip()}
    return {"file": file, "weight": number}


def _read_several(given: Any) -> Any:
    if isinstance(given, str):
        given = given.split(",")
    return [_read_one(each) if isinstance(each, str) else each for each in given] if isinstance(given, list) else given


def as_option(loras: Sequence[AddedLora]) -> str:
    """The value of `--lora` that names these."""
    return ",".join(f"{each.file}:{each.weight:g}" for each in loras)


#: `FILE[:WEIGHT],FILE[:WEIGHT]`, or a list.
LoraList = Annotated[tuple[AddedLora, ...], BeforeValidator(_read_several)]
