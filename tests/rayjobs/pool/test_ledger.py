import errno
import json
import os
import threading
import time

import pytest

from ortho_core.errors import RunFailed, UserError
from ortho_core.pairs.rows import Failure
from ortho_core.records.parts import ShardResult, read_footer
from ortho_core.records.plan import ImportedPlan, NoiseSettings, ReconstructionPlan
from ortho_core.storage.open import open_store
from rayjobs.pool.ledger import Ledger, Task
from rayjobs.verb.plan import claim, replace_text

NOISE = NoiseSettings(seed=0, transform="orthogonal", patch_size=2, regions=1, store="parameters", store_latents=False)
PLAN = ReconstructionPlan(
    pairs_fingerprint="p", model_fingerprint="m", noise=NOISE, config={"steps": 3}, rows=5, rows_per_shard=2, shards=3
)
FAILURES = [Failure(f"{i}", i, "missing-image", "gone") for i in range(5)]
#: Rows 0 and 1, 2 and 3, 4.
SHARDS = (FAILURES[:2], FAILURES[2:4], FAILURES[4:])


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path):
    """An empty folder, on the disk and on an object store."""
    return open_store(tmp_path / "out" if request.param == "local" else request.getfixturevalue("s3")())


def row(number):
    return {"sample_id": f"{number}", "loss": 0.5, "initial_loss": 1.0}


def result(failures=(), rows=()):
    return ShardResult([row(number) for number in rows], list(failures), truncated_prompts=1, evaluations=6)


def filled(folder, plan=PLAN):
    ledger = Ledger(claim(folder.location, plan), plan)
    for shard, failures in enumerate(SHARDS):
        assert ledger.commit(Task(shard), result(failures))
    return ledger


def test_a_changed_configuration_is_refused_naming_what_differs(folder):
    claim(folder.location, PLAN)
    claim(folder.location, PLAN)
    other = PLAN.model_copy(update={"config": {"steps": 4}})
    with pytest.raises(UserError, match=r"another run.*config\.steps was 3, now 4$"):
        claim(folder.location, other)


def test_a_folder_with_other_things_in_it_is_refused(folder, tmp_path):
    folder.create("thesis.tex", b"x")
    with pytest.raises(UserError, match=r"not empty and was not made by `ortho assign` \(thesis.tex"):
        claim(folder.location, PLAN)
    folder.child("beside").replace("notes/a.txt", b"x")
    with pytest.raises(UserError, match=r"not made by `ortho assign` \(notes"):
        claim(folder.child("beside").location, PLAN)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        claim(tmp_path / "file", PLAN)


def test_a_folder_whose_plan_is_damaged_or_of_another_kind_is_refused(folder):
    imported = {"samples_fingerprint": "s", "latent_shape": (4, 8, 8), "noise_scale": 1.0, "model_noise_scale": None}
    other = ImportedPlan(**PLAN.model_dump(exclude={"kind", "warm_start"}), **imported)
    for content, says in (
        (PLAN.text()[:-20], "plan.json is damaged: "),
        ('{"title": "thesis"}', "was not made by ortho: it names no format"),
        (PLAN.text().replace('"rows": 5', '"rows": 6'), "was changed: "),
        (other.text(), "another kind of run: 'imported', not 'reconstruction'"),
    ):
        folder.replace("plan.json", content.encode())
        with pytest.raises(UserError, match=says) as refused:
            claim(folder.location, PLAN)
        assert str(refused.value).endswith("; delete the folder or choose another")


def test_a_small_file_is_replaced_at_once(tmp_path):
    replace_text(tmp_path / "new" / "x.json", "one")
    replace_text(tmp_path / "new" / "x.json", "two")
    assert [(p.name, p.read_text()) for p in (tmp_path / "new").iterdir()] == [("x.json", "two")]


def test_of_many_writers_of_a_shard_the_first_stays(folder):
    ledger = Ledger(claim(folder.location, PLAN), PLAN)
    barrier, won = threading.Barrier(6), []

    def write(i):
        mine = result([Failure("a", 0, "x", f"by {i}"), FAILURES[1]])
        barrier.wait()
        if ledger.commit(Task(0), mine):
            won.append(i)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert read_footer(folder, ledger.name(0)).about.failures[0].message == f"by {won[0]}"
    assert sorted(folder.names()) == sorted(["plan.json", ledger.name(0)])


def test_what_is_left_is_what_has_no_sound_part(folder):
    ledger = Ledger(claim(folder.location, PLAN), PLAN)
    assert ledger.survey() == ([Task(0), Task(1), Task(2)], 0, 0)
    ledger.commit(Task(1), result([FAILURES[2]], rows=[3]))
    ledger.commit(Task(2), result(FAILURES[4:]))
    assert ledger.survey() == ([Task(0)], 3, 2)
    assert ledger.committed(Task(0)) is None
    assert ledger.committed(Task(1)).rows == 1
    name = ledger.name(2)
    folder.replace(name, folder.read(name)[:-20])
    assert ledger.survey() == ([Task(0), Task(2)], 2, 1)
    assert name not in folder.names()


def test_a_part_that_was_altered_in_the_middle_is_found_out_and_removed(tmp_path):
    ledger = Ledger(claim(tmp_path, PLAN), PLAN)
    ledger.commit(Task(0), result(rows=[0, 1]))
    part = tmp_path / ledger.name(0)
    sound, meant = part.read_bytes(), part.stat().st_mtime
    content = bytearray(sound)
    content[20] ^= 0xFF  # inside a page; the footer is as it was
    part.write_bytes(content)
    os.utime(part, (time.time() + 5, time.time() + 5))
    assert read_footer(ledger.folder, part.name).rows == 2
    assert Task(0) in ledger.survey()[0]
    assert not part.exists()
    part.write_bytes(sound)  # touched, but whole: looked through and kept
    os.utime(part, (meant + 100, meant + 100))
    assert Task(0) not in ledger.survey()[0]


def test_failed_rows_can_be_tried_again_and_what_succeeds_is_added(folder):
    ledger = filled(folder)
    assert ledger.survey() == ([], 5, 5)
    todo, rows, quarantined = ledger.survey(retry_failures=True)
    assert todo == [Task(0, 1, frozenset({0, 1})), Task(1, 1, frozenset({2, 3})), Task(2, 1, frozenset({4}))]
    assert (rows, quarantined) == (0, 0)
    ledger.commit(todo[0], result([FAILURES[1]], rows=[0]))
    assert ledger.survey() == ([], 5, 4)
    counts = ledger.finish()
    assert (counts.assigned, counts.quarantined) == (1, 4)
    assert [json.loads(line)["row"] for line in folder.read("failures.jsonl").splitlines()] == [1, 2, 3, 4]
    assert ledger.survey(retry_failures=True)[0][0] == Task(0, 2, frozenset({1}))
    # A revision that is damaged is made again without being asked for: its rows had been assigned.
    name = ledger.name(0, 1)
    folder.replace(name, b"PAR1")
    assert ledger.survey() == ([Task(0, 1, frozenset({0, 1}))], 3, 3)


def test_the_end_reconciles_rows_and_lists_the_failures(folder):
    counts = filled(folder).finish()
    assert (counts.assigned, counts.quarantined, counts.quarantined_by_reason) == (0, 5, {"missing-image": 5})
    assert (counts.truncated_prompts, counts.evaluations) == (3, 18)
    assert (counts.mean_loss, counts.mean_initial_loss) == (None, None)
    assert [json.loads(line)["row"] for line in folder.read("failures.jsonl").splitlines()] == [0, 1, 2, 3, 4]


def test_rows_that_do_not_add_up_and_parts_that_have_gone_are_errors(folder):
    ledger = filled(folder, PLAN.model_copy(update={"rows": 6}))
    with pytest.raises(RuntimeError, match="is not 6 rows"):
        ledger.finish()
    folder.remove(ledger.name(1))
    with pytest.raises(RunFailed, match=r"is missing from .*run the same command again"):
        ledger.finish()


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(tmp_path, monkeypatch):
    ledger = Ledger(claim(tmp_path, PLAN), PLAN)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailed, match=r"cannot write .*part-000000-.*: No space left on device$"):
        ledger.commit(Task(0), result(FAILURES[:2]))
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]


def test_a_mean_loss_is_over_the_rows_that_know_theirs(folder):
    ledger = Ledger(claim(folder.location, PLAN), PLAN)
    unknown = row(1) | {"loss": None, "initial_loss": None}
    ledger.commit(Task(0), ShardResult([row(0), unknown]))
    ledger.commit(Task(1), ShardResult([row(2) | {"loss": 1.0}, row(3) | {"initial_loss": None}]))
    ledger.commit(Task(2), result(rows=[4]))
    counts = ledger.finish()
    assert counts.assigned == 5
    assert counts.mean_loss == pytest.approx((0.5 + 1.0 + 0.5 + 0.5) / 4)
    assert counts.mean_initial_loss == pytest.approx(1.0)
