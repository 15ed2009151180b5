"""What is written aside tells whose it is: a dead process's is swept, a living one's is not."""

import os
import re
import tempfile
import time

import pytest

from ortho_core.storage import aside as asides
from ortho_core.storage.aside import UNTOUCHED_S, aside, folder_aside, scratch_folder, sweep_aside


def elsewhere(path, untouched_s=0.0):
    """A copy of a process of another machine, which was last written to so long ago."""
    copy = path.with_name(re.sub(r"\.[0-9a-f]{8}-\d+-", ".00000000-1-", aside(path).name))
    copy.write_bytes(b"half")
    os.utime(copy, (time.time() - untouched_s,) * 2)
    return copy


def test_what_a_dead_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path, left_aside):
    dead, living = left_aside(tmp_path / "a.bin"), aside(tmp_path / "a.bin")
    living.write_bytes(b"half")
    (folder := aside(tmp_path / "model", "old")).mkdir()
    os.utime(living, (0, 0))
    for name in ("a.bin", ".hidden", "x.partial", ".lease"):
        (tmp_path / name).touch()
    assert dead.exists()
    sweep_aside(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(["a.bin", ".hidden", "x.partial", ".lease", living.name, folder.name])


def test_a_folder_that_a_dead_process_left_goes_with_what_is_in_it(tmp_path, left_aside):
    dead = left_aside(tmp_path / "model")
    dead.unlink()
    (dead / "unet").mkdir(parents=True)
    (dead / "unet" / "weights").write_bytes(b"half")
    sweep_aside(tmp_path)
    assert not os.listdir(tmp_path)


def test_the_number_of_a_dead_process_that_another_has_by_now_is_no_sign_of_life(tmp_path):
    copy = aside(tmp_path / "a.bin")
    reused = copy.with_name(re.sub(r"-\d+-(?=[0-9a-f]{8}\.)", "-1-", copy.name))
    reused.write_bytes(b"half")
    sweep_aside(tmp_path)
    assert not os.listdir(tmp_path)


def test_another_machines_copy_goes_when_nothing_has_changed_it_for_a_while(tmp_path):
    fresh, old = elsewhere(tmp_path / "a.bin"), elsewhere(tmp_path / "b.bin", UNTOUCHED_S + 5)
    sweep_aside(tmp_path)
    assert fresh.exists()
    assert not old.exists()
    sweep_aside(tmp_path, alone=True)  # whoever holds the lease need not wait
    assert not os.listdir(tmp_path)


def test_a_folder_is_as_old_as_the_latest_file_in_it(tmp_path):
    copy = elsewhere(tmp_path / "model")
    copy.unlink()
    copy.mkdir()
    (copy / "weights").write_bytes(b"half")
    os.utime(copy, (0, 0))
    sweep_aside(tmp_path)
    assert copy.exists()
    os.utime(copy / "weights", (0, 0))
    os.utime(copy, (0, 0))
    sweep_aside(tmp_path)
    assert not copy.exists()


def test_where_processes_cannot_be_told_apart_age_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(asides, "this_machine", lambda: "")
    copy = aside(tmp_path / "a.bin")
    copy.write_bytes(b"half")
    sweep_aside(tmp_path)
    assert copy.exists()
    os.utime(copy, (0, 0))
    sweep_aside(tmp_path)
    assert not copy.exists()


def test_sweeping_follows_no_link_and_needs_no_folder(tmp_path, left_aside):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").touch()
    dead = left_aside(tmp_path / "work")
    dead.unlink()
    dead.symlink_to(tmp_path / "kept")
    sweep_aside(tmp_path)
    assert os.listdir(tmp_path) == ["kept"]
    assert os.listdir(tmp_path / "kept") == ["a"]
    sweep_aside(tmp_path / "none")
    sweep_aside(tmp_path / "kept" / "a")


def test_a_folder_aside_is_gone_after_the_block_also_after_an_error(tmp_path):
    def fails():
        with folder_aside(tmp_path / "lora") as folder:
            folder.mkdir()
            (folder / "a").touch()
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fails()
    assert not os.listdir(tmp_path)


def test_a_scratch_folder_removes_what_a_killed_one_left(tmp_path, left_aside, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left_aside(tmp_path / "ortho-submit")
    other = left_aside(tmp_path / "another")
    with scratch_folder("ortho-submit") as folder:
        assert sorted(os.listdir(tmp_path)) == sorted([folder.name, other.name])
        assert folder.stat().st_mode & 0o077 == 0
    assert os.listdir(tmp_path) == [other.name]


def test_the_longest_usual_name_has_room_for_its_owner(tmp_path):
    aside(tmp_path / ("n" * 190)).touch()
