"""Pair sets: where (prompt, image) rows come from, one module per format, and what makes a row usable.

`PairSet` opens any of them; `PairFields` says which fields hold what.
"""

from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Pair, PairFields, Shard

__all__ = ["Pair", "PairFields", "PairSet", "Shard"]
