"""The gain of each reward over a run."""

import math
from collections.abc import Iterator

import numpy as np

from ortho_core.evaluation.metrics import Estimate
from ortho_core.records.assignments import Assignments
from ortho_core.records.parts import read_part
from rayjobs.reports.summaries import RewardGain


def gains(found: Assignments) -> dict[str, RewardGain]:
    """The mean gain of each reward over all prompts.

    One part file is in memory at a time. The interval is the mean over prompts ± 1.96 standard errors.
    """
    sums: dict[str, np.ndarray] = {}
    for before, after in recorded_rewards(found):
        for name, value in after.items():
            gain = value - before[name]
            sums[name] = sums.get(name, 0) + np.array([1.0, before[name], value, gain > 0, gain, gain**2])
    rewards = {}
    for name, row in sums.items():
        count = int(row[0])
        first, last, improved, gain, square = (row[1:] / count).tolist()
        error = 1.96 * math.sqrt(max(0.0, square - gain**2) / max(1, count - 1))
        interval = Estimate(gain, gain - error, gain + error, count)
        rewards[name] = RewardGain(before=first, after=last, improved=improved, gain=interval)
    return rewards


def recorded_rewards(found: Assignments) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """Each prompt's rewards (before, after), by name; one part file is in memory at a time."""
    for part in found.parts:
        table = read_part(found.folder, part, ["initial_rewards", "rewards"]).to_pylist()
        yield from ((dict(row["initial_rewards"]), dict(row["rewards"])) for row in table)
