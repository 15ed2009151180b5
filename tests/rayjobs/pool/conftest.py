import json

import pytest

from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import PairFields
from tests.rayjobs.pool.lengths import ROWS


@pytest.fixture
def pairs(digits, tmp_path):
    """Eleven rows, of which the sixth has no prompt."""
    lines = [json.loads(line) for line in (digits / "pairs.jsonl").read_text().splitlines()[:ROWS]]
    lines[5]["prompt"] = " "
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return PairSet(tmp_path / "pairs.jsonl", PairFields(image_root=digits))
