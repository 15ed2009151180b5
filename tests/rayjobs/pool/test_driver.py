"""The pool with the least that it needs: in this process and through Ray."""

import pytest

from ortho_core.errors import RunFailed
from ortho_core.pairs.decoding import usable_rows
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import PairFields
from ortho_core.records.parts import read_part
from rayjobs.pool.driver import work_through
from tests.rayjobs.pool.lengths import ROWS, Lengths, LengthsJob, begin


def measure(pairs, out, workers, **options):
    """Run what is left to do; the records by their ids, and the counts."""
    ledger, shards = begin(pairs, out)
    search = options.pop("search", Lengths(pairs))
    work_through(LengthsJob(str(out), (workers, workers), **options), ledger, ledger.survey(), shards, search)
    names = [name for parts in ledger.parts() for name in parts]
    rows = [row for name in names for row in read_part(ledger.folder, name).to_pylist()]
    return {row["sample_id"]: (row["letters"], row["pixels"]) for row in rows}, ledger.finish()


def test_a_search_of_ones_own_runs_in_this_process_and_resumes(pairs, tmp_path, capsys):
    found, counts = measure(pairs, tmp_path / "out", 0)
    expected = {pair.sample_id: (len(pair.prompt), 48) for pair in usable_rows(pairs, pairs.shards(ROWS)[0], [])}
    assert found == expected
    assert (counts.assigned, counts.quarantined_by_reason) == (ROWS - 1, {"missing-prompt": 1})
    assert "measure: ready" in (said := capsys.readouterr().err)
    assert f"measure: {ROWS}/{ROWS} rows" in said
    parts = sorted((tmp_path / "out").glob("part-*"))
    before = {part: part.stat().st_mtime_ns for part in parts}
    parts[2].unlink()
    again, _ = measure(pairs, tmp_path / "out", 0)
    assert again == expected
    assert [part for part in parts if part.stat().st_mtime_ns != before[part]] == [parts[2]]


@pytest.mark.parametrize("sound", [False, True])
def test_failed_shards_wait_for_the_first(digits, tmp_path, sound):
    """Workers finish in any order; here the first shard is the last. Nothing is settled unless one of its rows succeeds."""
    lines = (digits / "pairs.jsonl").read_text().splitlines()[:1] if sound else []
    lines += ['{"prompt": " ", "image": "0.png"}'] * (ROWS - len(lines))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    pairs = PairSet(tmp_path / "pairs.jsonl", PairFields(image_root=digits))
    ledger, shards = begin(pairs, tmp_path / "out")
    survey = ledger.survey()

    def backwards():
        job = LengthsJob(str(tmp_path / "out"), (0, 0))
        work_through(job, ledger, survey._replace(todo=survey.todo[::-1]), shards, Lengths(pairs))

    if sound:
        backwards()
        assert (ledger.finish().assigned, ledger.finish().quarantined) == (1, ROWS - 1)
    else:
        with pytest.raises(RunFailed, match="every row of the first shard failed"):
            backwards()
        assert not list((tmp_path / "out").glob("part-*"))


@pytest.mark.usefixtures("ray_session")
def test_two_workers_of_ray_leave_the_same_rows(pairs, tmp_path):
    assert measure(pairs, tmp_path / "two", 2) == measure(pairs, tmp_path / "none", 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_search_that_cannot_be_loaded_ends_the_run_in_its_own_words(pairs, tmp_path, ray_session, workers):
    with pytest.raises(RunFailed, match=r"^the weights are not there$"):
        measure(pairs, tmp_path / "out", workers, search=Lengths(pairs, broken="the weights are not there"))
    assert not list((tmp_path / "out").glob("part-*"))
