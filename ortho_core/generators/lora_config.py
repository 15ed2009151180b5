"""Descriptions of adapters, without PyTorch: the shape of a trained adapter, and the files that `--lora` adds to a model."""

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
    """A LoRA that is multiplied by `weight` and added to a model's weights; `file` is its file or its folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: LocalPath
    weight: float = Field(1.0, allow_inf_nan=False)


def _read_one(text: str) -> dict[str, Any]:
    """`FILE` or `FILE:WEIGHT`; text after the last colon that is not a number belongs to the file name."""
    file, colon, weight = text.strip().rpartition(":")
    try:
        number = float(weight)
    except ValueError:
        return {"file": text.strip()}
    if not (colon and file and math.isfinite(number)):
        return {"file": text.strip()}
    return {"file": file, "weight": number}


def _read_several(value: Any) -> Any:
    if isinstance(value, str):
        value = value.split(",")
    return [_read_one(each) if isinstance(each, str) else each for each in value] if isinstance(value, list) else value


def as_option(loras: Sequence[AddedLora]) -> str:
    """The value of `--lora` for these LoRAs."""
    return ",".join(f"{each.file}:{each.weight:g}" for each in loras)


#: `FILE[:WEIGHT],FILE[:WEIGHT]`, or a list.
LoraList = Annotated[tuple[AddedLora, ...], BeforeValidator(_read_several)]
