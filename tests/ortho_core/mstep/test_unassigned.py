import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from ortho_core.errors import UserError
from ortho_core.mstep.unassigned import UnassignedRows
from ortho_core.pairs.pair_set import PairSet

SIZE = (32, 32)


def test_rows_are_those_of_the_set_in_any_order_and_in_another_process(small_pairs):
    pairs = PairSet(small_pairs)
    rows = list(pairs.read(pairs.shards(24)[0]))
    images = pairs.images(rows, SIZE)
    source = UnassignedRows(pairs, SIZE)
    assert (len(source), source.starts[-1], source.unusable) == (24, 24, {})
    index = [5, 23, 0, 5, 11]
    for reader in (source, pickle.loads(pickle.dumps(source))):
        for k, (pair, image) in zip(index, reader.read(index), strict=True):
            assert pair == replace(rows[k], frame=pair.frame)
            assert pair.frame.size == SIZE
            np.testing.assert_array_equal(image, images[k])


def test_prompts_are_those_of_rows_that_have_one(small_pairs, monkeypatch):
    monkeypatch.setattr(PairSet, "rows_per_shard", lambda self: 4)
    lines = (small_pairs / "pairs.jsonl").read_text().splitlines()
    wanted = {json.loads(line)["prompt"] for line in lines[1:]}
    lines[0] = '{"image": "images/0000.png"}'
    (small_pairs / "pairs.jsonl").write_text("\n".join(lines))
    assert UnassignedRows(PairSet(small_pairs), SIZE).prompts() == wanted


def test_few_shards_stay_in_memory(small_pairs, monkeypatch):
    monkeypatch.setattr(PairSet, "rows_per_shard", lambda self: 4)
    source = UnassignedRows(PairSet(small_pairs), SIZE, cache_bytes=2500)
    assert source.row_bytes == 512
    names = [source.read([k])[0][0].row for k in (0, 9, 23, 1)]
    assert names == [0, 9, 23, 1]
    assert list(source._cache) == [0]


def test_a_row_that_cannot_be_used_gives_its_place_to_the_next_of_its_shard(small_pairs, monkeypatch):
    monkeypatch.setattr(PairSet, "rows_per_shard", lambda self: 4)
    for k in (2, 3, 8, 9, 10, 11):
        (small_pairs / "images" / f"{k:04d}.png").write_bytes(b"no picture")
    lines = (small_pairs / "pairs.jsonl").read_text().splitlines()
    lines[4] = '{"image": "images/0004.png"}'
    (small_pairs / "pairs.jsonl").write_text("\n".join(lines))
    source = UnassignedRows(PairSet(small_pairs), SIZE)
    assert [pair.row for pair, _ in source.read([0, 1, 2, 3, 4])] == [0, 1, 0, 0, 5]
    assert sorted(source.unusable) == [2, 3, 4]
    assert all(said.startswith(f"row {row}: ") for row, said in source.unusable.items())
    with pytest.raises(UserError, match="none of a shard's 4 rows can be used; one of them: row 9: "):
        source.read([9])


def test_a_prompt_that_names_no_class_is_no_prompt_of_a_model_of_classes(small_pairs):
    pairs = PairSet(small_pairs)
    rows = list(pairs.read(pairs.shards(24)[0]))
    source = UnassignedRows(pairs, SIZE, [row.prompt for row in rows if row.prompt != rows[0].prompt])
    assert source.read([0])[0][0].row == next(k for k, row in enumerate(rows) if row.prompt != rows[0].prompt)
    assert "is no class" in source.unusable[0]
