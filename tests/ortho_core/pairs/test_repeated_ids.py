import json
import pickle

import numpy as np
import pytest

from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.repeated_ids import repeated
from ortho_core.pairs.rows import PairFields


@pytest.mark.parametrize("at_once", [1, 3, 16, 1 << 20])
def test_all_but_the_first_row_of_each_id_are_found_in_any_amount_of_memory(at_once):
    ids = [str(k) for k in np.random.default_rng(0).integers(0, 60, 100)]
    seen, expected = set(), []
    for row, own in enumerate(ids, 1000):
        if own in seen:
            expected.append(row)
        seen.add(own)
    assert repeated(enumerate(ids, 1000), at_once).tolist() == expected
    assert repeated(enumerate("abc"), at_once).tolist() == []
    assert repeated(iter([]), at_once).tolist() == []


def test_a_later_row_of_the_same_id_is_bad_in_whichever_shard_it_is(tmp_path):
    keys = ["a", "b", "a", None, "c", "b", 7, "7", "a"]
    rows = [{"prompt": "x", "image": "a.png", "key": key} for key in keys]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = PairSet(tmp_path, PairFields(id_field="key"))
    shards = pairs.shards(2)
    elsewhere = pickle.loads(pickle.dumps(pairs))
    found = [row for shard in shards for row in elsewhere.read(shard)]
    reasons = [row[1].reason if isinstance(row, tuple) else row.sample_id for row in found]
    again = "duplicate-id"
    assert reasons == ["a", "b", again, "missing-id", "c", again, "7", again, again]
    assert str(found[5][1]) == "row 5: an earlier row has the id 'b'"
