import json
import threading

import pytest

from ortho_core.assignments import Failure, write_part
from ortho_core.errors import UserError
from rayjobs.ledger import Ledger, claim, differences, publish

PLAN = Ledger.seal({"rows": 5, "shards": 3, "config": {"steps": 3, "patch_size": 2}})


def part(shard, failures=()):
    about = {"shard": shard, "truncated_prompts": 1, "evaluations": 6, "loss_sum": 0.0, "initial_loss_sum": 0.0}
    return lambda path: write_part(path, [], list(failures), about)


def test_of_many_writers_one_publishes_and_nothing_is_left_over(tmp_path):
    barrier, won = threading.Barrier(8), []

    def write(i):
        def content(path):
            barrier.wait()
            path.write_text(str(i))

        if publish(tmp_path / "x", content):
            won.append(i)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (tmp_path / "x").read_text() == str(won[0])
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def fail(path):
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        publish(tmp_path / "x", fail)
    assert list(tmp_path.iterdir()) == []


def test_a_changed_configuration_is_refused_naming_what_differs(tmp_path):
    claim(tmp_path / "out", PLAN, "assign")
    claim(tmp_path / "out", PLAN, "assign")
    other = Ledger.seal({"rows": 5, "shards": 3, "config": {"steps": 4, "patch_size": 2}})
    with pytest.raises(UserError, match=r"another run.*config\.steps was 3, now 4$"):
        claim(tmp_path / "out", other, "assign")


def test_a_folder_with_other_things_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"not empty and was not made by `ortho assign` \(thesis.tex"):
        claim(tmp_path, PLAN, "assign")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        claim(tmp_path / "file", PLAN, "assign")


def test_differences_reach_into_groups_and_see_what_came_and_went():
    assert differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}) == [
        "a.c was 2, now 5",
        "d was 3, now None",
        "e was None, now 4",
    ]


def test_pending_is_what_has_no_sound_part(tmp_path):
    ledger = Ledger(tmp_path, PLAN)
    assert ledger.pending() == [0, 1, 2]
    publish(ledger.path(1), part(1))
    publish(ledger.path(2), part(2))
    assert ledger.pending() == [0]
    content = ledger.path(2).read_bytes()
    ledger.path(2).write_bytes(content[:-20])
    assert ledger.pending() == [0, 2]
    assert not ledger.path(2).exists()


def test_the_end_reconciles_rows_and_lists_the_failures(tmp_path):
    ledger = Ledger(tmp_path, PLAN)
    failures = [Failure(f"{i}", i, "missing-image", "gone") for i in range(5)]
    for shard, some in enumerate((failures[:2], failures[2:4], failures[4:])):
        publish(ledger.path(shard), part(shard, some))
    counts = ledger.finish()
    assert (counts["assigned"], counts["quarantined"], counts["quarantined_by_reason"]) == (0, 5, {"missing-image": 5})
    assert counts["truncated_prompts"] == 3
    lines = (tmp_path / "failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == [0, 1, 2, 3, 4]


def test_rows_that_do_not_add_up_are_an_error(tmp_path):
    ledger = Ledger(tmp_path, PLAN)
    for shard in range(3):
        publish(ledger.path(shard), part(shard))
    with pytest.raises(RuntimeError, match="is not 5 rows"):
        ledger.finish()
