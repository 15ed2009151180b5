"""What a low-rank adapter is: its rank, its scale, the layers that have it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Lora:
    """An adapter of rank `rank`, scaled by `alpha / rank`, on each module whose dotted name ends in one of `targets`."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
