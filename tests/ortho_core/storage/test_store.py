import errno
import io
import os
import pickle
import tempfile
import threading
import time

import pytest

from ortho_core.errors import UserError
from ortho_core.storage.local import LocalStore
from ortho_core.storage.object_store import ObjectStore
from ortho_core.storage.open import open_store
from ortho_core.storage.store import OutsideRoot, TooLarge


@pytest.fixture(params=["local", "s3", "memory"])
def store(request, tmp_path):
    """A folder that is not there yet, on each kind of storage."""
    if request.param == "local":
        return open_store(tmp_path / "folder")
    if request.param == "memory":
        return open_store(f"memory://{tmp_path.name}/folder")
    return open_store(request.getfixturevalue("s3")() + "/folder")


@pytest.fixture
def local(tmp_path):
    return LocalStore(tmp_path)


@pytest.fixture
def bucket(s3):
    return ObjectStore(s3())


def test_the_first_writer_of_a_name_keeps_it(store):
    assert store.create("sub/a.bin", b"first")
    assert not store.create("sub/a.bin", b"second")
    assert store.read("sub/a.bin") == b"first"


@pytest.mark.parametrize("round_", range(3))
def test_of_eight_writers_at_once_one_creates(round_, tmp_path, s3):
    for store in (LocalStore(tmp_path), ObjectStore(s3() + "/folder")):
        start = threading.Barrier(8)
        made = {}

        def write(number, store=store, start=start, made=made):
            start.wait()
            made[number] = store.create("a.bin", b"%d" % number)

        threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(made.values()) == [False] * 7 + [True]
        assert made[int(store.read("a.bin"))]
    assert os.listdir(tmp_path) == ["a.bin"]


def test_replacing_writes_over_what_is_there(store):
    store.replace("a.bin", b"old")
    store.replace("a.bin", b"new")
    assert store.read("a.bin") == b"new"
    with tempfile.TemporaryFile() as source:
        source.write(b"from a file" * 100_000)
        store.replace_from("a.bin", source)
    assert store.read("a.bin") == b"from a file" * 100_000
    assert store.names() == ["a.bin"]


def test_a_file_is_removed_and_an_absent_one_needs_no_removing(store):
    store.replace("a.bin", b"x")
    store.remove("a.bin")
    store.remove("a.bin")
    assert not store.exists("a.bin")
    assert store.names() == []


def test_ranges_are_read(store):
    store.replace("a.bin", b"0123456789")
    ranges = [(0, None), (4, None), (2, 3), (0, 4), (8, 5), (3, 0), (0, 0), (10, None), (20, 5)]
    assert [store.read("a.bin", start, length).decode() for start, length in ranges] == [
        *("0123456789", "456789", "234", "0123", "89"),
        *[""] * 4,
    ]
    assert store.size("a.bin") == 10


def test_a_stream_gives_lines_and_seeks(store):
    lines = [b"%d\n" % i for i in range(20_000)]
    store.replace("a.txt", b"".join(lines))
    with store.open("a.txt") as stream:
        assert list(stream) == lines
        stream.seek(len(lines[0]))
        assert stream.readline() == lines[1]
        stream.seek(-3, os.SEEK_END)
        assert stream.read() == lines[-1][-3:]


def test_names_are_the_plain_files_of_one_folder(store):
    for name in ("b.txt", "a.txt", ".hidden.txt", "sub/c.txt", "sub/.hidden/d.txt"):
        store.replace(name, b"12")
    sibling = open_store(store.location + "-of-similar-name")
    sibling.replace("e.txt", b"")
    assert store.names() == ["a.txt", "b.txt"]
    assert store.child("sub").names() == ["c.txt"]
    assert store.child("none").names() == []


def test_find_lists_files_below_by_their_endings(store):
    for name in ("b.txt", "sub/deeper/a.txt", "sub/c.tar", ".hidden.txt", "sub/.hidden/d.txt"):
        store.replace(name, b"12")
    open_store(store.location + "-of-similar-name").replace("e.txt", b"")
    assert store.find(".txt") == [("b.txt", 2), ("sub/deeper/a.txt", 2)]
    assert store.find("") == [("b.txt", 2), ("sub/c.tar", 2), ("sub/deeper/a.txt", 2)]
    assert store.child("none").find("") == []


def test_a_folder_is_no_file(store):
    store.replace("sub/a.txt", b"")
    assert store.exists("sub/a.txt")
    assert not store.exists("sub")
    assert not store.exists("sub/b.txt")


def test_a_pipe_is_no_file_and_nothing_waits_for_its_writer(local):
    os.mkfifo(local.path / "pipe")
    with pytest.raises(FileNotFoundError, match="it is a pipe, not a regular file"):
        local.read("pipe")


def test_what_another_writes_or_removes_is_seen(store):
    other = pickle.loads(pickle.dumps(store))
    assert not store.exists("a.txt")
    assert store.names() == []
    other.replace("a.txt", b"1")
    assert store.exists("a.txt")
    assert store.find("") == [("a.txt", 1)]
    other.remove("a.txt")
    assert store.names() == []


def test_a_missing_file_is_not_found(store):
    for action in (store.read, store.size, store.open, lambda name: store.read(name, 3, 4)):
        with pytest.raises(FileNotFoundError):
            action("none.txt")
    assert store.names() == []


def test_a_store_is_the_same_after_pickling(store):
    store.replace("sub/a.txt", b"x")
    again = pickle.loads(pickle.dumps(store.child("sub")))
    assert again.location == store.location + "/sub"
    assert again.read("a.txt") == b"x"
    assert len(pickle.dumps(store)) < 1_000


def test_entries_are_files_and_folders(store):
    assert store.entries() == []
    for name in ("b.txt", "sub/a.txt", ".hidden"):
        store.replace(name, b"x")
    assert store.entries() == ["b.txt", "sub"]
    assert store.names() == ["b.txt"]


def test_sweeping_leaves_whole_files(store):
    store.replace("a.txt", b"x")
    store.sweep()
    assert store.names() == ["a.txt"]


def test_dots_and_absolute_names_lead_out_of_no_store(store, tmp_path):
    (tmp_path / "secret").write_text("")
    for name in ("../secret", "..", "sub/../../secret", "/etc/passwd", str(tmp_path / "secret")):
        with pytest.raises(OutsideRoot):
            store.contains(name)
    assert store.contains("sub/../a.txt") == "a.txt"
    with pytest.raises(FileNotFoundError):
        store.contains("a\0b")


def test_links_do_not_lead_out_of_a_local_folder(tmp_path):
    store = LocalStore(tmp_path / "root")
    store.replace("inside/a.txt", b"x")
    (tmp_path / "secret").write_text("")
    (store.path / "link").symlink_to(tmp_path / "secret")
    (store.path / "folder").symlink_to(tmp_path)
    (store.path / "loop").symlink_to(store.path / "loop")
    (store.path / "near").symlink_to(store.path / "inside")
    for name in ("link", "folder/secret", "folder"):
        with pytest.raises(OutsideRoot):
            store.contains(name)
    for name in ("loop", "loop/a.txt"):
        with pytest.raises(FileNotFoundError):
            store.contains(name)
    assert store.contains("near/a.txt") == "inside/a.txt"
    assert store.contains(str(store.path / "near" / "a.txt")) == "inside/a.txt"


def test_a_link_to_nowhere_is_no_file(local):
    (local.path / "a.tar").symlink_to(local.path / "gone.tar")
    assert local.names() == []
    assert local.find(".tar") == []


def test_an_altered_file_was_touched(local):
    written = time.time() - 1_000
    local.create("a.bin", b"x", written)
    assert not local.touched("a.bin", written)
    (local.path / "a.bin").write_bytes(b"y")
    assert local.touched("a.bin", written)


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_nothing_behind(local, monkeypatch):
    source = io.BytesIO(b"new")
    local.replace("old.bin", b"old")
    monkeypatch.setattr(os, "fsync", full)
    for write in (
        lambda: local.create("a.bin", b"x"),
        lambda: local.replace("old.bin", b"new"),
        lambda: local.replace_from("old.bin", source),
    ):
        with pytest.raises(OSError, match="No space left"):
            write()
    assert os.listdir(local.path) == ["old.bin"]
    assert local.read("old.bin") == b"old"


def test_a_copy_that_ends_early_leaves_nothing_behind(local, monkeypatch):
    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        local.replace_from("a.bin", io.BytesIO(b"new"))
    assert os.listdir(local.path) == []


def test_an_upload_that_ends_early_publishes_nothing(bucket):
    class Torn(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 6 << 20:
                raise OSError(errno.EIO, "the disk is broken")
            return super().read(size)

    torn = Torn(bytes(12 << 20))
    with pytest.raises(OSError, match="the disk is broken"):
        bucket.replace_from("a.bin", torn)
    assert bucket.names() == []


def test_a_disk_without_hard_links_gets_the_file_all_the_same(local, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", unsupported)
    assert local.create("a.bin", b"x")
    assert os.listdir(local.path) == ["a.bin"]


def test_a_writer_whose_copy_another_machine_has_swept_away_writes_again(local, monkeypatch):
    link, calls = os.link, []

    def swept_first(source, target):
        calls.append(source)
        if len(calls) == 1:
            os.unlink(source)
        link(source, target)

    monkeypatch.setattr(os, "link", swept_first)
    assert local.create("a.bin", b"x")
    assert len(calls) == 2
    assert os.listdir(local.path) == ["a.bin"]


def test_the_mark_of_an_empty_folder_is_no_object_of_ours(bucket):
    bucket.filesystem.call_s3("put_object", Bucket=bucket.path, Key="sub/deeper/", Body=b"")
    bucket.replace("sub/a.txt", b"x")
    assert bucket.find("") == [("sub/a.txt", 1)]
    assert bucket.child("sub").names() == ["a.txt"]


def test_a_large_object_is_created_once(bucket):
    large = bytes(101 << 20)  # uploaded in parts
    assert bucket.create("a.bin", large)
    assert not bucket.create("a.bin", large)
    assert bucket.size("a.bin") == len(large)


def test_a_bucket_that_is_not_there_takes_nothing(s3):
    store = ObjectStore(s3() + "-gone")
    for write in (store.create, store.replace):
        with pytest.raises(FileNotFoundError):
            write("a.txt", b"x")
    assert store.names() == []


def test_a_failure_is_not_taken_for_an_absence(bucket, monkeypatch):
    def refused(*_, **__):
        raise PermissionError("Forbidden")

    monkeypatch.setattr(bucket.filesystem, "info", refused)
    with pytest.raises(PermissionError):
        bucket.exists("a.txt")


@pytest.mark.parametrize("url", ["nope://somewhere/x", "sftp://somewhere/x", "hdfs://somewhere/x", "s3://", "s3:///"])
def test_a_url_that_nothing_opens_is_told_in_one_line(url):
    with pytest.raises(UserError, match="cannot open") as raised:
        open_store(url)
    assert "\n" not in str(raised.value)
    assert url.rstrip("/") in str(raised.value)


def test_a_file_url_is_a_local_path(tmp_path):
    assert open_store(f"file://{tmp_path}").location == str(tmp_path)
    assert open_store("a/../b").location == os.path.abspath("b")


def test_a_walk_sees_every_folder_before_those_in_it_and_leaves_out_what_is_struck(store):
    for name in ("a.bin", "sub/b.bin", "sub/deep/c.bin", "other/d.bin", ".hidden/e.bin", "sub-2/f.bin"):
        store.replace(name, b"x")
    seen = []
    for entries in store.walk():
        seen.append((entries.path, sorted(entries.files)))
        if entries.path == "sub":
            entries.folders.remove("deep")
    assert seen == [
        ("", ["a.bin"]),
        (".hidden", ["e.bin"]),
        ("other", ["d.bin"]),
        ("sub", ["b.bin"]),
        ("sub-2", ["f.bin"]),
    ]
    assert list(store.child("none").walk()) == []


def test_a_walk_enters_no_link_and_goes_round_in_no_circle(tmp_path):
    (tmp_path / "set" / "sub").mkdir(parents=True)
    (tmp_path / "set" / "a.bin").touch()
    (tmp_path / "set" / "file").symlink_to(tmp_path / "set" / "a.bin")
    (tmp_path / "set" / "sub" / "up").symlink_to(tmp_path / "set", target_is_directory=True)
    (tmp_path / "set" / "loop").symlink_to(tmp_path / "set" / "loop")
    (tmp_path / "set" / "nowhere").symlink_to(tmp_path / "none")
    top, sub = LocalStore(tmp_path / "set").walk()
    assert (sorted(top.files), top.folders, top.links) == (["a.bin", "file"], ["sub"], [])
    assert (sub.files, sub.links) == ({}, ["up"])
    assert LocalStore(tmp_path / "set").names() == ["a.bin", "file"]


def test_a_folder_that_cannot_be_read_is_told_and_ends_no_walk(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.bin").touch()
    scandir = os.scandir

    def refuse(path):
        if path == tmp_path / "a":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert [(e.path, e.unreadable, sorted(e.files)) for e in LocalStore(tmp_path).walk()] == [
        ("", None, []),
        ("a", "Permission denied", []),
        ("b", None, ["x.bin"]),
    ]


def test_a_folder_in_the_place_of_a_file_is_said_by_every_way_of_writing_it(local):
    (local.path / "part").mkdir(parents=True)
    for write in (
        lambda: local.create("part", b"1"),
        lambda: local.replace("part", b"1"),
        lambda: local.replace_from("part", io.BytesIO(b"1")),
    ):
        with pytest.raises(
            UserError,
            match=r"part is a folder, but a file of this name must be written: move the folder away, or delete it$",
        ):
            write()
    assert (local.path / "part").is_dir()
    assert not [name for name in os.listdir(local.path) if name.endswith(".partial")]


def test_a_file_within_a_limit_is_read_and_a_larger_one_is_not(store):
    store.replace("a", b"12345")
    assert store.read_within("a", 5) == b"12345"
    with pytest.raises(TooLarge) as refused:
        store.read_within("a", 4)
    assert refused.value.size == 5
