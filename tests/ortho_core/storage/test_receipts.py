"""What a finished run says of its files: each is known again on a disk and in an object store, and nothing else passes for it."""

import json
import os

import pytest

from ortho_core.errors import UserError
from ortho_core.storage.open import open_store
from ortho_core.storage.receipts import REMEDY, certified, fault_of, faults_of, receipt_of


@pytest.fixture(params=["disk", "s3"])
def folder(request, tmp_path):
    return open_store(str(tmp_path / "out") if request.param == "disk" else request.getfixturevalue("s3")() + "/out")


@pytest.fixture
def local(tmp_path):
    return open_store(tmp_path)


def test_a_file_is_as_it_was_until_it_is_lost_cut_short_or_another(folder):
    folder.replace("sub/a.bin", b"12345")
    receipt = receipt_of(folder, "sub/a.bin")
    assert receipt.sha256 == "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5"
    assert fault_of(folder, "sub/a.bin", receipt, verify=True) == ""
    folder.replace("sub/a.bin", b"12")
    assert fault_of(folder, "sub/a.bin", receipt) == "has 2 bytes, not 5"
    folder.replace("sub/a.bin", b"54321")
    assert fault_of(folder, "sub/a.bin", receipt, verify=True) == "has another checksum"
    folder.remove("sub/a.bin")
    assert fault_of(folder, "sub/a.bin", receipt) == "is missing"


def test_the_same_content_at_another_time_passes_and_another_content_at_the_same_time_takes_verifying(local):
    local.replace("a.bin", b"12345")
    os.utime(local.path / "a.bin", (1000, 1000))  # long ago: its hash is remembered
    receipt = receipt_of(local, "a.bin")
    os.utime(local.path / "a.bin", (1, 1))
    assert not faults_of(local, {"a.bin": receipt})
    os.utime(local.path / "a.bin", ns=(receipt.changed_ns, receipt.changed_ns))
    (local.path / "a.bin").write_bytes(b"54321")  # of the same inode
    os.utime(local.path / "a.bin", ns=(receipt.changed_ns, receipt.changed_ns))
    assert not faults_of(local, {"a.bin": receipt})
    assert faults_of(local, {"a.bin": receipt}, verify=True) == {"a.bin": "has another checksum"}


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_waited_for(make, local):
    local.replace("a.bin", b"12345")
    receipt = receipt_of(local, "a.bin")
    local.remove("a.bin")
    make(local.path / "a.bin")
    assert fault_of(local, "a.bin", receipt, verify=True) == "is not a regular file"


def test_receipts_come_from_the_summary_and_an_earlier_one_has_none(folder):
    folder.replace("a.bin", b"12345")
    receipt = receipt_of(folder, "a.bin")
    folder.replace("summary.json", json.dumps({"rows": 3, "files": {"a.bin": receipt.model_dump()}}).encode())
    assert certified(folder, "summary.json") == {"a.bin": receipt}
    folder.replace("summary.json", b'{"rows": 3}')
    assert certified(folder, "summary.json") == {}


@pytest.mark.parametrize("text", [b"", b"[]", b'{"files": {"a": 1}}', b'{"files": {"a.bin": {"bytes": 5'])
def test_a_damaged_summary_is_said_once_with_what_to_do(text, folder):
    folder.replace("summary.json", text)
    with pytest.raises(UserError, match=REMEDY + "$") as raised:
        certified(folder, "summary.json")
    assert str(raised.value).count("summary.json") == 1
