"""Opens pair sets for verbs; the first line that a verb prints says how a pair set is read."""

from pathlib import Path

from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import PairFields
from rayjobs.verb.console import say


def open_pairs(
    location: str | Path, fields: PairFields | None = None, name: str = "pairs", count: bool = True
) -> PairSet:
    """Open a pair set and print one line: how it is read, its number of rows (with `count`), and what is left aside.

    Raises UserError if no pair set is found, or if it has no rows.
    """
    pairs = PairSet(location, fields)
    say(f"{name}: {pairs.line(count)}")
    return pairs
