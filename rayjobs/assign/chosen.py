"""Which rows of an E-step the report shows: the lowest losses, the highest losses, a random sample, and the hardest rows."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from ortho_core.records.sampled import SampledRecord

#: The most rows of each kind. All are rendered by the model, so they are few.
BEST, WORST, DRAWN, HARDEST = 6, 9, 9, 6


@dataclass(frozen=True)
class HardPrompt:
    """A prompt that several rows have: the number of these rows, and their mean loss before and after the search."""

    prompt: str
    rows: int
    before: float
    after: float


@dataclass(frozen=True)
class ChosenRows:
    """The rows of each kind, and the prompts with the highest mean loss if enough prompts repeat."""

    best: list[SampledRecord]
    worst: list[SampledRecord]
    drawn: list[SampledRecord]
    #: The row with the median loss of each of `prompts`. Without `prompts`: the rows whose loss fell least.
    hardest: list[SampledRecord]
    prompts: list[HardPrompt]

    def every(self) -> list[SampledRecord]:
        """Each row once."""
        return list(dict.fromkeys([*self.best, *self.worst, *self.drawn, *self.hardest]))


def choose(records: Sequence[SampledRecord], seed: int) -> ChosenRows:
    """The rows to show; needs at least one record. The result depends only on the records and the seed."""
    by_loss = sorted(records, key=lambda record: record.loss)
    best = by_loss[: min(BEST, -(-len(records) // 2))]
    worst = by_loss[len(best) :][-WORST:][::-1]
    numbers = np.random.default_rng(seed).choice(len(records), min(DRAWN, len(records)), replace=False)
    drawn = [records[i] for i in sorted(numbers)]
    prompts, hardest = hardest_prompts(by_loss)
    if not prompts:
        hardest = sorted(records, key=lambda record: record.fall)[:HARDEST]
    return ChosenRows(best, worst, drawn, hardest, prompts)


def hardest_prompts(by_loss: Sequence[SampledRecord]) -> tuple[list[HardPrompt], list[SampledRecord]]:
    """The HARDEST prompts with the highest mean loss, and one row of each. Both are empty if fewer prompts repeat.

    `by_loss` are the records by their loss, the lowest first.
    """
    rows: dict[str, list[SampledRecord]] = defaultdict(list)
    for record in by_loss:
        rows[record.prompt].append(record)
    repeated = [
        HardPrompt(prompt, len(same), fmean(r.initial_loss for r in same), fmean(r.loss for r in same))
        for prompt, same in rows.items()
        if len(same) > 1
    ]
    if len(repeated) < HARDEST:
        return [], []
    hardest = sorted(repeated, key=lambda prompt: (-prompt.after, prompt.prompt))[:HARDEST]
    return hardest, [rows[hard.prompt][len(rows[hard.prompt]) // 2] for hard in hardest]
