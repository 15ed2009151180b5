"""What the plans of training runs have in common."""

from ortho_core.records.plan import Plan, Settings


class TrainingPlan(Plan):
    """So many updates over rows of a pair set, whatever is trained."""

    pairs_fingerprint: str
    config: Settings
    rows: int
    updates: int
