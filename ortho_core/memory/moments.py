"""The moments of an update at which most bytes can be alive: for few rows the gradients decide, for many the activations.

The bytes alive after an operation are linear in the rows, and the operations are the same for any number of rows. So three
counted updates give the bytes at each moment of any other update. Axes: B rows, P preserve rows.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np

#: For each moment: constant bytes, bytes per row, bytes per preserve row.
Moments = tuple[tuple[int, int, int], ...]
#: Numbers of rows for which the largest moment is kept; a moment that is the largest for none of them is dropped.
ROWS = (*range(1, 9), 12, 16, 24, 32, 48, 64, 128, 256, 1024)


def at_most(moments: Moments, rows: int, preserve_rows: int) -> int:
    """The largest number of bytes alive, over all moments."""
    return max(base + row * rows + preserve_row * preserve_rows for base, row, preserve_row in moments)


def moments_of(
    few: Sequence[int], row_more: Sequence[int], preserve_more: Sequence[int], rows: tuple[int, int], more: int
) -> Moments:
    """The moments, from the bytes after each operation of three updates: `rows` = (B, P), (B + 1, P) and (B, P + `more`).

    If the three updates differ in their operations, only their peaks are used.
    """
    B, P = rows
    if not len(few) == len(row_more) == len(preserve_more):
        few, row_more, preserve_more = ([max(each)] for each in (few, row_more, preserve_more))
    lines = set()
    for here, with_row, with_preserve in zip(few, row_more, preserve_more, strict=True):
        row, preserve_row = with_row - here, (with_preserve - here) // more
        lines.add((here - B * row - P * preserve_row, row, preserve_row))
    table = np.array(sorted(lines))
    grid = np.array([(1, b, p) for b, p in product(ROWS, (0, *ROWS) if P else (0,))])
    largest = table[np.unique((table @ grid.T).argmax(0))]
    return tuple((int(base), int(row), int(preserve_row)) for base, row, preserve_row in largest)
