"""The pool with the least that it needs: in this process and through Ray."""

import pytest

from ortho_core.errors import RunFailed
from ortho_core.pairs.decoding import usable_rows
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


@pytest.mark.usefixtures("ray_session")
def test_two_workers_of_ray_leave_the_same_rows(pairs, tmp_path):
    assert measure(pairs, tmp_path / "two", 2) == measure(pairs, tmp_path / "none", 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_search_that_cannot_be_loaded_ends_the_run_in_its_own_words(pairs, tmp_path, ray_session, workers):
    with pytest.raises(RunFailed, match=r"^the weights are not there$"):
        measure(pairs, tmp_path / "out", workers, search=Lengths(pairs, broken="the weights are not there"))
    assert not list((tmp_path / "out").glob("part-*"))
