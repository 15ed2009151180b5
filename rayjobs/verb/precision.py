"""What a verb's model computes in."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from ortho_core.marks import decides

#: In what the weights of the network are kept, where they do not train.
Quantize = Literal["none", "int8", "nf4"]


class Precision(BaseModel):
    """The precision of the model, of every verb that has one and does not train it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = decides(
        "auto",
        description="precision of network and text encoders; auto: float32 on a CPU, float16 on a GPU, with an eighth of "
        "bfloat16's error",
    )
    quantize: Quantize = decides(
        "none", description="pack the network's linear layers in 8 or 4 bits, for small GPUs (docs/guides/devices.md)"
    )
