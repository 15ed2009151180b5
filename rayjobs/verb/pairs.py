"""Pair sets as verbs open them: what was recognised is said before anything else."""

from pathlib import Path

from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import PairFields
from rayjobs.verb.console import say


def open_pairs(
    location: str | Path, fields: PairFields | None = None, name: str = "pairs", count: bool = True
) -> PairSet:
    """The pair set, once one line has said how it is read, how many rows it has (with `count`) and what is left aside.

    Raises UserError if there is none, or if it has no rows.
    """
    pairs = PairSet(location, fields)
    say(f"{name}: {pairs.line(count)}")
    return pairs
