"""Parts of real sets: every row is in one part, under the number that it has in the whole set."""

import json

import pytest

from ortho_core.errors import UserError
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import PairFields
from tests.ortho_core.pairs.made import KINDS, read_all, write_captions, write_lines, write_set


def part(folder, name: str, **fields) -> PairSet:
    return PairSet(folder, PairFields(part=name, **fields))


@pytest.fixture(params=[*KINDS, "captions"])
def folder(request, tmp_path):
    prompts = [f"prompt {i}" for i in range(60)]
    if request.param == "captions":
        return write_captions(tmp_path / "set", {f"{i // 20}/{i:03d}.png": prompt for i, prompt in enumerate(prompts)})
    return write_set(request.param, tmp_path / "set", prompts)


@pytest.mark.parametrize("share", ["10%", "3", "40"])
def test_two_parts_are_the_whole_set_with_its_numbers_and_names(folder, share):
    whole = read_all(PairSet(folder), 16)
    training, heldout = (part(folder, f"{name}:{share}") for name in ("training", "heldout"))
    for size in (4, 100):
        parts = [read_all(pairs, size) for pairs in (training, heldout)]
        assert sorted(parts[0] + parts[1], key=lambda row: row.row) == whole
        assert [len(rows) for rows in parts] == [training.rows(), heldout.rows()]
        assert [row.row for rows in parts for row in rows] == [n for rows in parts for n in sorted(r.row for r in rows)]
    assert len({pairs.fingerprint() for pairs in (PairSet(folder), training, heldout)}) == 3


def test_a_shard_of_held_out_rows_has_as_many_as_any_and_reads_past_few(tmp_path):
    lines = [{"prompt": f"p {i}", "image": f"{i}.png"} for i in range(4000)]
    folder = write_lines(tmp_path / "set" / "pairs.jsonl", *lines).parent
    dense, sparse = part(folder, "heldout:5%"), part(folder, "heldout:8")
    assert [shard.rows for shard in dense.shards(64)] == pytest.approx([64, 64, 64, 8], abs=4)
    assert all(len(shard.runs) == 1 for shard in dense.shards(64))
    (shard,) = sparse.shards(64)
    assert sum(run.span for run in shard.runs) < 1200
    assert [row.row for row in sparse.read(shard.shortened(3))] == [row.row for row in sparse.read(shard)][:3]
    few = dense.spread(10)
    rows = [row.row for row in read_all(few, 64)]
    assert len(rows) == few.rows() == 10
    assert max(rows) > 3600
    assert {*rows} <= {row.row for row in read_all(dense, 64)}


def test_all_captions_of_an_image_are_in_one_part(tmp_path):
    captions = {f"{i:02d}.png": "\n".join(f"{i} {n}" for n in range(1 + i % 4)) for i in range(40)}
    folder = write_captions(tmp_path / "set", captions)
    whole = read_all(PairSet(folder, PairFields(caption="all")), 7)
    training, heldout = (part(folder, f"{name}:25%", caption="all") for name in ("training", "heldout"))
    for size in (1, 7, 100):
        parts = [read_all(pairs, size) for pairs in (training, heldout)]
        assert sorted(parts[0] + parts[1], key=lambda row: row.row) == whole
        assert not {row.image for row in parts[0]} & {row.image for row in parts[1]}
    assert len({row.image for row in parts[1]}) == 10
    assert heldout.rows() == len(parts[1])
    assert f"{heldout.rows()} rows, the captions of 10 of 40 images" in heldout.line()


def test_repeated_ids_are_found_within_a_part(tmp_path):
    lines = [{"prompt": "p", "image": f"{i}.png", "key": i % 30} for i in range(40)]
    folder = write_lines(tmp_path / "set" / "pairs.jsonl", *lines).parent
    pairs = part(folder, "training:10%", id_field="key")
    rows = read_all(pairs, 8)
    assert len(rows) == pairs.rows() == 36
    kept = [row.sample_id for row in rows if not isinstance(row, tuple)]
    assert len(set(kept)) == len(kept) == len({row.row % 30 for row in rows if not isinstance(row, tuple)})


def test_a_part_is_said_and_changed_rows_are_noticed(tmp_path):
    lines = [{"prompt": "p", "image": f"{i}.png"} for i in range(40)]
    file = write_lines(tmp_path / "set" / "pairs.jsonl", *lines)
    pairs = part(file.parent, "training:10%")
    assert pairs.line().startswith("part training:10%: 36 of 40 rows; rows in pairs.jsonl")
    assert pairs.line(count=False).startswith("part training:10%; rows in pairs.jsonl")
    assert (pairs.record()["rows"], pairs.record()["part"]) == (36, "training:10%")
    named = PairSet(file.parent).part_named("training:10%")
    assert (named.line(), named.fingerprint()) == (pairs.line(), pairs.fingerprint())
    assert named.part_named("heldout:10%").spread(3).record()["rows"] == 3
    (shard,) = pairs.shards(100)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines[:30]))
    with pytest.raises(UserError, match="has changed since the run began"):
        list(pairs.read(shard))
    with pytest.raises(UserError, match="cannot hold out 40 of 30 rows"):
        part(file.parent, "heldout:40").rows()
