"""Files of tensors, read by the safetensors library."""

import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ortho_core.storage.open import open_store
from ortho_core.storage.tensors import FIRST_READ, TensorFile, in_type, tensor_bytes, write_tensors


def test_the_library_reads_what_was_written_and_the_same_again_is_the_same_file(tmp_path):
    tensors = {
        "a": torch.arange(6, dtype=torch.float16).view(2, 3),
        "b": torch.randn(4, 3).T,
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0),
        "c": torch.randn(3).bfloat16(),
        "n": torch.tensor([1, -2]),
    }
    header = {f"name{n}": f'val"ü{n}' for n in range(20)}
    for file in ("one", "two"):
        write_tensors(tmp_path / file, tensors, header)
    read = load_file(tmp_path / "one")
    assert read.keys() == tensors.keys()
    assert all(read[name].dtype == value.dtype and torch.equal(read[name], value) for name, value in tensors.items())
    with safe_open(tmp_path / "one", "pt") as stored:
        assert stored.metadata() == header
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


def test_a_file_that_cannot_be_written_whole_does_not_appear(tmp_path):
    with pytest.raises(NotImplementedError):
        write_tensors(tmp_path / "one", {"a": torch.zeros(2, device="meta")}, {})
    assert os.listdir(tmp_path) == []


def test_what_float16_cannot_hold_stays_as_it_is():
    assert in_type(torch.tensor([1.0, 7e4]), torch.float16).dtype == torch.float32
    assert in_type(torch.tensor([1.0, 6e4]), torch.float16).dtype == torch.float16


STACKED = {"a": torch.arange(24, dtype=torch.bfloat16).view(4, 2, 3), "b": torch.arange(4.0)}


def test_rows_are_read_without_the_rest_of_the_file(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    store.create("one", tensor_bytes(STACKED, {"name": "ü"}))
    write_tensors(tmp_path / "two", STACKED, {"name": "ü"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    file = TensorFile.read(store, "one")
    assert (file.metadata, file.size) == ({"name": "ü"}, (tmp_path / "one").stat().st_size)
    asked, read = [], store.read
    monkeypatch.setattr(store, "read", lambda *place: asked.append(place[2]) or read(*place))
    for name, tensor in STACKED.items():
        stacked = file.tensors[name]
        rows = [stacked.tensor(stacked.read(store, "one", row)) for row in range(4)]
        assert torch.equal(torch.stack(rows), tensor)
        assert rows[0].dtype == tensor.dtype
    assert asked == [12] * 4 + [4] * 4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no header of the safetensors format"),
        (b"\xff" * 64, "no header of the safetensors format"),
        (b"\x10" + bytes(7) + b"[1, 2, 3, 4, 5 ]", "accepted: a JSON object"),
        (b"\x10" + bytes(7) + b'{"a": {"b": 1} }', "unknown entries"),
        (tensor_bytes({"a": torch.tensor(1.0)}, {}), "a tensor without rows"),
        (tensor_bytes(STACKED, {}).replace(b"[4,2,3]", b"[4,2,9]"), "whose size does not fit its shape"),
    ],
)
def test_other_files_are_refused(content, said, tmp_path):
    (tmp_path / "one").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        TensorFile.read(open_store(tmp_path), "one")


def test_a_header_longer_than_the_first_read_is_read_whole(tmp_path):
    about = {"keys": "0" * (FIRST_READ + 10)}
    (tmp_path / "one").write_bytes(tensor_bytes(STACKED, about))
    assert TensorFile.read(open_store(tmp_path), "one").metadata == about
