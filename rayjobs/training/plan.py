"""The common part of the plans of training runs."""

from ortho_core.records.plan import Plan, Settings


class TrainingPlan(Plan):
    """A number of updates over the rows of a pair set."""

    pairs_fingerprint: str
    config: Settings
    rows: int
    updates: int
