"""Hashes that are kept: known without reading, forgotten with the first change, never taken from a damaged store."""

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from ortho_core.storage import hashes
from ortho_core.storage.hashes import content_hash, hash_folder

#: Hashes a file in a process of its own, and says how often it was opened.
PROGRAM = """
import sys
from pathlib import Path
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" and args[0] == sys.argv[1] else None)
from ortho_core.storage.hashes import content_hash
print(content_hash(Path(sys.argv[1])), len(opened))
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A store of the test's own, and nothing known in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "_known", {})
    return tmp_path / "cache" / "ortho" / "hashes"


def settled(file: Path, content: bytes, at: int = 1_000_000_000) -> Path:
    """A file that was last changed long ago."""
    file.write_bytes(content)
    os.utime(file, (at, at))
    return file


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def elsewhere(file: Path) -> tuple[str, int]:
    """From another process: the hash, and how often the file was opened."""
    told = subprocess.run([sys.executable, "-c", PROGRAM, str(file)], check=True, capture_output=True, text=True).stdout
    digest, opened = told.split()
    return digest, int(opened)


def test_another_process_knows_the_hash_without_opening_the_file(cache, tmp_path):
    file = settled(tmp_path / "weights", b"weights")
    assert elsewhere(file) == (sha256(b"weights"), 1)
    assert elsewhere(file) == (sha256(b"weights"), 0)
    assert [path.suffix for path in cache.iterdir()] == [".json"]
    (tmp_path / "other name").symlink_to(file)  # as in a hub cache
    assert elsewhere(tmp_path / "other name") == (sha256(b"weights"), 0)


@pytest.mark.parametrize("kept", [True, False])
def test_a_file_that_changed_is_read_again(kept, cache, tmp_path, monkeypatch):
    if not kept:  # what this process knows stands in
        monkeypatch.setattr(hashes, "_keep", lambda *_: None)
    file = settled(tmp_path / "weights", b"weights")
    assert content_hash(file) == sha256(b"weights")
    settled(file, b"weighed")  # as long, and of the same time and inode: nothing tells it from the other
    assert content_hash(file) == sha256(b"weights")
    settled(file, b"weighed", at=1_000_000_001)
    assert content_hash(file) == sha256(b"weighed")
    settled(file, b"longer than it was", at=1_000_000_001)
    assert content_hash(file) == sha256(b"longer than it was")
    replaced = settled(tmp_path / "replaced", b"as long as it was.", at=1_000_000_001)
    replaced.rename(file)
    assert content_hash(file) == sha256(b"as long as it was.")


def test_what_was_written_a_moment_ago_is_not_kept(cache, tmp_path):
    """Another change within the clock's tick would not show."""
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    assert content_hash(file) == sha256(b"weights")
    assert not cache.exists()


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"{}",
        b"[]",
        b"7",
        b'["path", 1, 2, 3, "00"]',
        lambda entry: json.dumps([*entry[:4], "z" * 64]).encode(),
        lambda entry: json.dumps([*entry[:4], None]).encode(),
        lambda entry: json.dumps([*entry[:4], entry[4][:-2]]).encode(),
        lambda entry: json.dumps(["/another/path", *entry[1:]]).encode(),
    ],
)
def test_a_damaged_entry_is_no_entry(damage, cache, tmp_path, monkeypatch):
    file = settled(tmp_path / "weights", b"weights")
    content_hash(file)
    (entry,) = cache.iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(damage if isinstance(damage, bytes) else damage(json.loads(whole)))
    monkeypatch.setattr(hashes, "_known", {})
    assert content_hash(file) == sha256(b"weights")
    assert entry.read_bytes() == whole


def test_without_a_store_files_are_hashed_all_the_same(tmp_path, monkeypatch):
    file = settled(tmp_path / "weights", b"weights")
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", "/proc/none"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(place))
        monkeypatch.setattr(hashes, "_known", {})
        assert content_hash(file) == sha256(b"weights")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(hashes, "_known", {})
    assert content_hash(file) == sha256(b"weights")


def test_the_store_is_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert hash_folder() == tmp_path / "ortho" / "hashes"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/paths/do/not/count")
    assert hash_folder() == Path.home() / ".cache" / "ortho" / "hashes"


def test_writers_at_once_leave_one_whole_entry_for_each_file(cache, tmp_path):
    contents = [bytes([n]) * 50_000 for n in range(8)]
    files = [settled(tmp_path / str(n), content) for n, content in enumerate(contents)]
    with ProcessPoolExecutor(4) as pool:
        found = list(pool.map(content_hash, files * 4))
    assert found == [sha256(content) for content in contents] * 4
    entries = {Path(json.loads(entry.read_bytes())[0]): json.loads(entry.read_bytes())[4] for entry in cache.iterdir()}
    assert entries == {file: sha256(content) for file, content in zip(files, contents, strict=True)}


def test_a_file_that_is_not_there_is_not_known(cache, tmp_path):
    file = settled(tmp_path / "weights", b"weights")
    content_hash(file)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        content_hash(file)
