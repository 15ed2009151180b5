"""The moments of an update at which most bytes can be alive: with few rows the gradients decide, with many the activations.

After every operation the bytes alive are linear in the rows, and the operations are the same for any number of rows. So three
updates tell the bytes at each moment of every other. Axes: B rows, P preserve rows.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np

#: Of each moment bytes of no row, of each row, and of each preserve row.
Moments = tuple[tuple[int, int, int], ...]
#: Rows for which the largest moment is kept: a moment that is largest nowhere among them is not needed.
ROWS = (*range(1, 9), 12, 16, 24, 32, 48, 64, 128, 256, 1024)


def at_most(moments: Moments, rows: int, preserve_rows: int) -> int:
    """Bytes at the moment when most are alive."""
    return max(base + row * rows + preserve_row * preserve_rows for base, row, preserve_row in moments)


def moments_of(
    few: Sequence[int], row_more: Sequence[int], preserve_more: Sequence[int], rows: tuple[int, int], more: int
) -> Moments:
    """From bytes alive after each operation of an update of `rows` (B, P), of one row more, and of `more` preserve rows more.

    Of updates whose operations are not the same only the peaks are compared.
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
