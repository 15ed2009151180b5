"""Files of tensors, read by the safetensors library."""

import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ortho_core.storage.tensors import in_type, write_tensors


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
