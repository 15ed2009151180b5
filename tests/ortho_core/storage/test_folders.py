"""Folders that appear whole or not at all."""

import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from ortho_core.storage.folders import link_tree, replace_folder


def write(folder, content):
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_replaced_whole_and_nothing_of_the_old_one_stays(tmp_path):
    folder = tmp_path / "models" / "mine"
    for content in ({"a": "1", "b": "1"}, {"a": "2"}):
        replace_folder(folder, lambda aside, content=content: write(aside, content))
        assert contents(folder) == content
        assert os.listdir(folder.parent) == ["mine"]


def test_a_writer_that_fails_leaves_the_old_folder_as_it_was(tmp_path):
    folder = tmp_path / "mine"
    replace_folder(folder, lambda aside: write(aside, {"a": "1"}))

    def fails(aside):
        write(aside, {"a": "2"})
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_folder(folder, fails)
    assert contents(tmp_path) == {"mine/a": "1"}


def test_a_linked_tree_takes_no_space_and_outlives_its_source(tmp_path, monkeypatch):
    source, content = tmp_path / "source", {"a": "1", "b": "2"}
    write(source, content)
    link_tree(source, tmp_path / "linked")
    assert os.path.samefile(source / "a", tmp_path / "linked" / "a")

    def unsupported(*_):
        raise OSError("no links on this file system")

    monkeypatch.setattr(os, "link", unsupported)
    link_tree(source, tmp_path / "copied")
    assert not os.path.samefile(source / "a", tmp_path / "copied" / "a")
    shutil.rmtree(source)
    assert contents(tmp_path / "linked") == contents(tmp_path / "copied") == content


@pytest.mark.parametrize(("umask", "modes"), [(0o022, {0o644}), (0o077, {0o600}), (0o002, {0o664})])
def test_files_are_for_whom_the_umask_lets_read_whatever_library_wrote_them(umask, modes, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.write_text("somebody's")
    theirs.chmod(0o640)

    def fill(aside):
        write(aside, {"config.json": "{}"})
        (aside / "unet").mkdir()
        save_file({"a": torch.zeros(2)}, aside / "unet" / "model.safetensors")
        os.link(theirs, aside / "linked")
        (aside / "link").symlink_to(theirs)

    before = os.umask(umask)
    try:
        replace_folder(tmp_path / "mine", fill)
    finally:
        os.umask(before)
    ours = [tmp_path / "mine" / "config.json", tmp_path / "mine" / "unet" / "model.safetensors"]
    assert {path.stat().st_mode & 0o777 for path in ours} == modes
    assert theirs.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path / "mine")) == ["config.json", "link", "linked", "unet"]
