"""What a finished run certifies, against files that are lost, cut short, changed, touched and copied."""

import os
import shutil

import pytest

from ortho_core.errors import UserError
from rayjobs.training.receipts import check_receipts, receipts

FILE = "checkpoint-final/unet/weights.safetensors"


@pytest.fixture
def made(tmp_path):
    """A run whose last epoch's folder is linked to the final one, beside a best one of its own."""
    for folder, content in (("checkpoint-final", b"final"), ("checkpoint-best", b"best!")):
        file = tmp_path / folder / "unet" / "weights.safetensors"
        file.parent.mkdir(parents=True)
        file.write_bytes(content * 100)
    shutil.copytree(tmp_path / "checkpoint-final", tmp_path / "checkpoint-epoch-001", copy_function=os.link)
    (tmp_path / "train_history.jsonl").write_text("{}")
    return tmp_path, receipts(tmp_path)


def test_it_lists_every_file_of_the_model_folders(made):
    out, said = made
    assert sorted(said) == [f"checkpoint-{n}/unet/weights.safetensors" for n in ("best", "epoch-001", "final")]
    assert said[FILE].bytes == 500
    assert said[FILE].sha256 == said[FILE.replace("final", "epoch-001")].sha256
    check_receipts(out, said, verify=False)


DAMAGE = {
    "lost": lambda file: file.unlink(),
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "changed": lambda file: file.write_bytes(b"other" * 100),
    "its folder lost": lambda file: shutil.rmtree(file.parents[1]),
    "a folder in its place": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_lost_or_damaged_is_linked_from_an_equal_file(made, damage, capsys):
    out, said = made
    (out / "checkpoint-epoch-001").rename(out / "kept")  # what is written into a link is written into the other
    shutil.copytree(out / "kept", out / "checkpoint-epoch-001")
    DAMAGE[damage](out / FILE)
    check_receipts(out, said, verify=False)
    assert (out / FILE).read_bytes() == b"final" * 100
    assert "linked again from checkpoint-epoch-001/unet/weights.safetensors" in capsys.readouterr().err
    check_receipts(out, said, verify=True)


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_nothing_is_equal_to_is_said_with_the_remedy(made, damage):
    out, said = made
    shutil.rmtree(out / "checkpoint-epoch-001")
    DAMAGE[damage](out / FILE)
    with pytest.raises(
        UserError, match=r"put it back from a copy, or delete .*train_summary\.json, and the same"
    ) as raised:
        check_receipts(out, said, verify=False)
    assert "\n" not in str(raised.value)


def test_folders_but_the_final_one_may_be_deleted_to_save_space(made):
    out, said = made
    shutil.rmtree(out / "checkpoint-best")
    shutil.rmtree(out / "checkpoint-epoch-001")
    check_receipts(out, said, verify=True)


def test_a_copy_has_other_times_and_the_same_content(made, tmp_path_factory):
    out, said = made
    copy = tmp_path_factory.mktemp("copy") / "run"
    shutil.copytree(out, copy, copy_function=shutil.copyfile)
    check_receipts(copy, said, verify=False)


def test_what_changed_with_size_and_time_as_they_were_is_found_by_its_checksum(made):
    out, said = made
    shutil.rmtree(out / "checkpoint-epoch-001")
    changed = (out / FILE).stat().st_mtime_ns
    (out / FILE).write_bytes(b"other" * 100)
    os.utime(out / FILE, ns=(changed, changed))
    check_receipts(out, said, verify=False)
    with pytest.raises(UserError, match="has another checksum"):
        check_receipts(out, said, verify=True)


def test_what_is_whole_is_said_where_it_was_asked_for(made, capsys):
    check_receipts(*made, verify=True)
    assert "3 files in" in capsys.readouterr().err
