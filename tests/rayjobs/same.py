"""Whether two runs gave the same rows."""

import numpy as np
import pytest

from ortho_core.records.assignments import Assignments
from ortho_core.records.parts import SCHEMA


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
