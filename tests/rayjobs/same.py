"""Whether two runs gave the same rows; assignments whose plan says otherwise."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ortho_core.records.assignments import Assignments
from ortho_core.records.parts import SCHEMA
from ortho_core.records.plan import ReconstructionPlan, read_plan
from ortho_core.storage.open import open_store


def rows(out):
    assignments = Assignments(out)
    return {row["sample_id"]: row for row in assignments.rows(range(len(assignments)), SCHEMA.names)}


def assert_same(a, b, loss, skew):
    assert a.keys() == b.keys()
    for name, row in a.items():
        for column, value in row.items():
            other = b[name][column]
            if column in {"skew", "target_latent"} and value is not None:
                assert np.abs(value - other).max() <= skew, column
            elif isinstance(value, float):
                assert value == pytest.approx(other, rel=loss, abs=loss), column
            else:
                assert value == other, column


def replanned(assignments: Path, folder: Path, noise: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A copy of assignments whose plan says otherwise, of the noise and in general."""
    shutil.copytree(assignments, folder)
    before = read_plan(open_store(folder), ReconstructionPlan)
    changes |= {"noise": before.noise.model_copy(update=noise or {})}
    plan = before.model_copy(update=changes)
    (folder / "plan.json").write_text(plan.text())
    for part in folder.glob("part-*"):
        part.rename(folder / part.name.replace(before.run_fingerprint, plan.run_fingerprint))
    return folder
