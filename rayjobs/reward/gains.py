"""What the rewards gained, over a whole run."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ortho_core.records.assignments import Assignments
from ortho_core.records.parts import read_part


def gains(found: Assignments) -> dict[str, dict[str, Any]]:
    """Of each reward: its mean before and after, the mean gain, and the share of prompts for which it rose.

    One part is in memory at a time. The gain's interval is that of a mean over prompts, 1.96 standard errors to each side.
    """
    sums: dict[str, np.ndarray] = {}
    for before, after in told_rewards(found):
        for name, value in after.items():
            gain = value - before[name]
            sums[name] = sums.get(name, 0) + np.array([1.0, before[name], value, gain > 0, gain, gain**2])
    figures = {}
    for name, row in sums.items():
        count = int(row[0])
        first, last, improved, gain, square = (row[1:] / count).tolist()
        error = 1.96 * math.sqrt(max(0.0, square - gain**2) / max(1, count - 1))
        interval = {"value": gain, "low": gain - error, "high": gain + error, "count": count}
        figures[name] = {"before": first, "after": last, "improved": improved, "gain": interval}
    return figures


def told_rewards(found: Assignments) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """Each prompt's rewards (before, after), by name; one part in memory at a time."""
    for part in found.parts:
        table = read_part(found.folder, part, ["initial_rewards", "rewards"]).to_pylist()
        yield from ((dict(row["initial_rewards"]), dict(row["rewards"])) for row in table)
