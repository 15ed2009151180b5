"""The precision in which a verb's model computes."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from ortho_core.marks import decides

#: The format in memory of the network's weights, if they are not trained.
Quantize = Literal["none", "int8", "nf4"]


class Precision(BaseModel):
    """The precision of the model, for every verb that uses a model without training it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = decides(
        "auto",
        description="precision of network and text encoders; auto: float32 on a CPU; on a GPU float16 (its error is an "
        "eighth of bfloat16's), for flow models bfloat16, which they were made for",
    )
    quantize: Quantize = decides(
        "none", description="store the network's linear layers in 8 or 4 bits, for small GPUs (docs/guides/devices.md)"
    )
