"""Whatever ends a verb is one line: disks that are full, readers that are gone, weights cut short, memory that runs out."""

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import torch

from rayjobs.cli import main
from rayjobs.train.config import TrainJob
from rayjobs.verb.faults import explained, last_words
from rayjobs.verb.table import VERBS, Verb
from tests.conftest import ROOT, copy_pairs
from tests.disk import last_line


@pytest.fixture(autouse=True)
def tracebacks(monkeypatch, tmp_path):
    """The files of tracebacks go where the test's own files are."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture(scope="module")
def commands(assigned, tiny_turbo, digits, tmp_path_factory):
    """Verbs that are done in a moment, without their --out."""
    _, assignments = assigned
    model = ["--model", str(tiny_turbo)]
    one = copy_pairs(digits, tmp_path_factory.mktemp("one") / "pairs", 8)
    image = ["--prompt", "a red two", "--target-image", str(one / "images" / "0000.png")]
    return {
        "verify-noise": ["--size", "16", "--num-samples", "8", "--patch-size", "4"],
        "generate": [*model, "--prompt", "a red two", "--count", "1"],
        "invert": [*model, *image, "--steps", "1"],
        "look": ["--pairs", str(one)],
        "assign": ["--pairs", str(one), *model, "--steps", "1", "--workers", "0"],
        "export": ["--assignments", str(assignments), *model],
    }


@pytest.mark.parametrize("verb", ["verify-noise", "generate", "invert", "look", "assign", "export"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_wherever_writing_fails_it_is_one_line_with_the_place(verb, code, commands, disk, capsys, tmp_path):
    for done in (0, 1, 3):
        disk.folder, disk.code, disk.left, disk.failed = str(tmp_path / f"out-{done}"), code, done, ""
        try:
            ended = main([verb, *commands[verb], "--out", disk.folder])
        finally:
            disk.folder = ""
        said = capsys.readouterr().err
        if not disk.failed:
            break
        assert ended == 1, said
        line = last_line(verb, said)
        assert os.strerror(code) in line
        assert str(tmp_path) in line


def test_an_error_of_a_library_names_the_line_and_the_file_of_its_traceback(monkeypatch, capsys, tmp_path):
    argv = ["verify-noise", "--size", "16", "--num-samples", "8", "--patch-size", "4", "--out", str(tmp_path / "out")]

    def fails(*_):
        raise KeyError("what a library\nlooked for\x1b[31m")

    monkeypatch.setattr("rayjobs.verify_noise.job.random_rotation", fails)
    monkeypatch.delenv("ORTHO_TRACEBACK", raising=False)
    assert main(argv) == 1
    line = last_line("verify-noise", capsys.readouterr().err)
    assert re.search(r"KeyError in rayjobs/verify_noise/job\.py, line \d+: ", line)
    assert "\x1b" not in line
    file = Path(line.rpartition("the traceback is in ")[2])
    assert file.read_text().startswith("Traceback")
    assert file.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("ORTHO_TRACEBACK", "1")
    assert main(argv) == 1
    assert capsys.readouterr().err.startswith("Traceback")


def test_memory_that_runs_out_names_the_options_that_need_less(monkeypatch, capsys, tiny_turbo, tmp_path):
    def fails(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 79 GiB.")

    monkeypatch.setattr("rayjobs.generate.job.load_generator", fails)
    assert main(["generate", "--model", str(tiny_turbo), "--prompt", "a two", "--out", str(tmp_path / "out")]) == 1
    line = last_line("generate", capsys.readouterr().err)
    assert "memory ran out in rayjobs/generate/job.py, line " in line
    assert "Tried to allocate 2.00 GiB. GPU 0 has 79 GiB.; this process used " in line
    assert "; to need less: lower --batch-size" in line


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "the machine's memory ran out in a worker: MemoryError"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
            "the machine's",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "GPU memory ran out",
        ),
        (
            ray.exceptions.OutOfMemoryError("Task was killed.\nMemory on the node was 27 / 28 GB.\nsee"),
            "Memory on the node was",
        ),
        (ray.exceptions.ActorDiedError(), "ActorDiedError"),
        (ray.exceptions.WorkerCrashedError(), "WorkerCrashedError"),
    ],
)
def test_what_libraries_and_ray_call_memory_is_said_as_such(error, says):
    job = TrainJob(assignments="a", model="m", out="o", num_workers=2)
    said = explained(error, job)
    assert says in said
    assert ("to need less: " in said) == ("memory" in said.lower())
    assert ("start fewer --num-workers" in said) == ("machine's" in said)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_weights_that_are_cut_short_are_named(part, tiny_turbo, capsys, tmp_path):
    model = shutil.copytree(tiny_turbo, tmp_path / "model")
    (weights,) = (model / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    assert main(["generate", "--model", str(model), "--prompt", "a two", "--out", str(tmp_path / "out")]) == 1
    line = last_line("generate", capsys.readouterr().err)
    assert f"{weights} is broken (" in line
    assert "fetch the model folder again" in line


def test_a_module_that_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setitem(VERBS, "broken", Verb("rayjobs.verb.none", "None", ""))
    assert main(["broken"]) == 1
    line = last_line("broken", capsys.readouterr().err)
    assert "No module named 'rayjobs.verb.none'" in line
    assert "install ortho-em again" in line


def test_without_room_for_the_traceback_the_line_is_said_all_the_same(disk, tmp_path):
    disk.folder, disk.code, disk.left = str(tmp_path), errno.ENOSPC, 0
    line = last_words(OSError(errno.ENOSPC, "No space left on device"), "look", None)
    disk.folder = ""
    assert line.startswith("standard output: No space left on device (in a worker); free some room there")
    assert line.endswith("the traceback cannot be written to a file; ORTHO_TRACEBACK=1 prints it")


def test_a_library_that_names_a_full_disk_in_words_alone_is_understood():
    line = last_words(RuntimeError('IoError(Os { code: 28, message: "No space left on device" })'), "train", None)
    assert line.startswith("standard output: No space left on device (in a worker); free some room there")


def ran(command: str) -> subprocess.CompletedProcess[str]:
    """A line of the shell in which $ORTHO is the command."""
    own = {"ORTHO": f"{sys.executable} -m rayjobs", "PYTHONPATH": str(ROOT), "TMPDIR": os.environ["HOME"]}
    return subprocess.run(
        ["bash", "-c", command], env={**os.environ, **own}, capture_output=True, text=True, check=False
    )


def test_a_reader_that_has_gone_ends_a_verb_without_a_word_and_a_full_device_with_one():
    done = ran("set -o pipefail; (sleep 0.3; $ORTHO --help) | true")
    assert (done.returncode, done.stderr) == (141, "")
    done = ran("$ORTHO --help > /dev/full")
    assert done.returncode == 1
    assert "standard output: No space left on device" in last_line("--help", done.stderr)


def test_a_disk_that_is_really_full(tmp_path):
    if ran("unshare -rm true").returncode != 0:
        pytest.skip("needs a mount of its own")
    verb = f"$ORTHO verify-noise --size 16 --num-samples 8 --patch-size 4 --out {tmp_path}/out"
    done = ran(f"unshare -rm bash -c 'mount -t tmpfs -o size=32k none {tmp_path} && {verb}'")
    assert done.returncode == 1
    assert f"--out {tmp_path}/out: No space left on device (in " in last_line("verify-noise", done.stderr)
