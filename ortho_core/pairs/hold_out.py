"""Parts of a pair set: the held-out rows, spread over the whole set, and the training rows.

The held-out rows are computed from row numbers only. The N records are cut into n strata, [i·N//n, (i+1)·N//n), and a hash of
(i, n) chooses one record of each. So the number of held-out records in any range is known without reading records, and the
choice is the same in each process, on each machine and after each resume.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from ortho_core.errors import UserError

#: The held-out share: a percentage, or a number of rows.
SHARE = r"[0-9]+(\.[0-9]+)?%|[0-9]+"
PART_SPELLING = re.compile(rf"(training|heldout):({SHARE})")


def check_part(text: object) -> object:
    """The value of `--part`, if it names a part. Raises ValueError for any other text."""
    if isinstance(text, str) and not PART_SPELLING.fullmatch(text):
        raise ValueError("not a part of a pair set; accepted: training:5% or heldout:5%, or a number of rows for 5%")
    return text


def held_out_of(share: str, total: int) -> int:
    """The number of held-out records for a share of `total`: at least 1, at most total - 1. Raises UserError if impossible."""
    if total < 2:
        raise UserError(f"cannot hold out {share}: the pair set has only 1 row")
    if share.endswith("%"):
        wanted = Fraction(share[:-1]) / 100
        if not 0 < wanted < 1:
            raise UserError(f"cannot hold out {share}: accepted: more than 0 % and less than 100 %")
        return min(max(1, int(total * wanted + Fraction(1, 2))), total - 1)
    if not 0 < int(share) < total:
        raise UserError(f"cannot hold out {share} of {total} rows: accepted: 1 to {total - 1}, or a percentage")
    return int(share)


@dataclass(frozen=True)
class Part:
    """The records of one part of a set: the held-out ones, or the others (training)."""

    training: bool
    #: N, the records of the whole set, and n, the held-out records.
    total: int
    held: int
    #: Number of held-out records that are used, evenly spread.
    taken: int

    @staticmethod
    def of(text: str, total: int) -> "Part":
        """The part that `text` names, of a set of `total` records. Raises UserError if the share is impossible."""
        named = PART_SPELLING.fullmatch(text)
        assert named is not None
        held = held_out_of(named[2], total)
        return Part(named[1] == "training", total, held, held)

    @property
    def records(self) -> int:
        """Number of records in the part."""
        return self.total - self.held if self.training else self.taken

    def count(self, first: int, end: int) -> int:
        """Number of records from `first` to `end - 1` that are in the part."""
        held = self._before(end) - self._before(first)
        return end - first - held if self.training else held

    def within(self, first: int, end: int) -> Callable[[int], bool]:
        """A function that tells whether a record is in the part, for records `first` to `end - 1`."""
        strata = range(self._stratum(first), self._stratum(end - 1) + 1)
        held = {self._chosen(i) for i in strata if self._is_taken(i)}
        return (lambda record: record not in held) if self.training else held.__contains__

    def _stratum(self, record: int) -> int:
        """The last i with i·N//n ≤ record."""
        return ((record + 1) * self.held - 1) // self.total

    def _chosen(self, stratum: int) -> int:
        first, end = (i * self.total // self.held for i in (stratum, stratum + 1))
        drawn = hashlib.blake2b(f"{stratum}/{self.held}".encode(), digest_size=8).digest()
        return first + int.from_bytes(drawn, "little") % (end - first)

    def _strata_before(self, stratum: int) -> int:
        """Number of strata before this one that are taken; the taken ones are j·n//k for j below k = `taken`."""
        return -(-stratum * self.taken // self.held)

    def _is_taken(self, stratum: int) -> bool:
        return self._strata_before(stratum + 1) > self._strata_before(stratum)

    def _before(self, record: int) -> int:
        """Number of held-out records before this one."""
        if record >= self.total:
            return self.taken
        stratum = self._stratum(record)
        here = self._is_taken(stratum) and self._chosen(stratum) < record
        return self._strata_before(stratum) + here
