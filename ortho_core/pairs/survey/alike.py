"""Find images that occur more than once: with equal pixels, or as nearly the same picture."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from ortho_core.pairs.survey.sample import SeenRow

#: Two pictures count as alike if their small pictures differ by at most this fraction of their contrast. The same picture in
#: another quality or size differs by a few hundredths, another picture of the same object by several tenths.
ALIKE = 0.1
#: Largest number of images that are compared with one another.
MOST_COMPARED = 5_000


def identical(seen: Sequence[SeenRow]) -> list[list[SeenRow]]:
    """Groups of two or more rows with the same pixels."""
    groups: dict[bytes, list[SeenRow]] = defaultdict(list)
    for one in seen:
        groups[one.digest].append(one)
    return [group for group in groups.values() if len(group) > 1]


def nearly_alike(seen: Sequence[SeenRow], most: int = MOST_COMPARED) -> list[list[SeenRow]]:
    """Groups of two or more rows whose pixels differ but whose pictures are alike, among the first `most` different pictures.

    Small pictures a and b, with deviations a' and b' from their means, are alike if |a - b| <= ALIKE * min(|a'|, |b'|). Pictures
    that are linked through a third are in one group.
    """
    first = list({one.digest: one for one in reversed(seen)}.values())[::-1][:most]
    if len(first) < 2:
        return []
    small = np.stack([one.small for one in first]).astype(np.float32)
    square = (small**2).sum(1)
    contrast = ((small - small.mean(1, keepdims=True)) ** 2).sum(1)
    head = list(range(len(first)))

    def head_of(i: int) -> int:
        while head[i] != i:
            i = head[i]
        return i

    for start in range(0, len(first), 512):
        rows = slice(start, start + 512)
        distance = square[rows, None] + square - 2 * small[rows] @ small.T
        limit = ALIKE**2 * np.minimum(contrast[rows, None], contrast)
        for i, j in np.argwhere((distance <= limit) & (limit > 0)):
            a, b = sorted((head_of(start + int(i)), head_of(int(j))))
            head[b] = a
    groups: dict[int, list[SeenRow]] = defaultdict(list)
    for i, one in enumerate(first):
        groups[head_of(i)].append(one)
    return [group for group in groups.values() if len(group) > 1]


def prompts_of(group: Sequence[SeenRow]) -> list[str]:
    """The different prompts of a group, in order."""
    return list(dict.fromkeys(one.pair.prompt for one in group))
