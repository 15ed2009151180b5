"""The report of a sweep (placeholder until parts merge)."""

from pathlib import Path


def write_report(work_dir: Path) -> None:
    pass
