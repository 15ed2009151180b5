"""Memory that runs out in every verb, in the command's process and in Ray's: one line, with the options that need less."""

import os
import re

import pytest

from ortho_core.generators.class_conditional import ClassNetwork
from ortho_core.generators.diffusers_pipelines import DiffusersGenerator
from rayjobs.cli import main
from rayjobs.processes.forks import fork_server
from rayjobs.train.config import TrainJob
from rayjobs.verb.remedies import remedies
from tests.conftest import ROOT, connect_ray, copy_pairs, stop_ray
from tests.rayjobs.same import assert_same, rows

#: Started with every Python process of Ray: the networks run out of memory for more images at once than a file says.
EVERYWHERE = """
import importlib.machinery, os, sys

PATCHED = {
    "ortho_core.generators.diffusers_pipelines": ("DiffusersGenerator", "denoise"),
    "ortho_core.generators.class_conditional": ("ClassNetwork", "forward"),
}

def limited(usual):
    import torch

    def little(self, noise, *rest):
        with open(os.environ["ORTHO_TEST_MOST_IMAGES"]) as file:
            most = int(file.read())
        if len(noise) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.\\nSee documentation for more")
        return usual(self, noise, *rest)

    return little

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name not in PATCHED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run, (cls, method) = spec.loader.exec_module, PATCHED[name]

        def exec_module(module):
            run(module)
            owner = getattr(module, cls)
            setattr(owner, method, limited(getattr(owner, method)))

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


@pytest.fixture(scope="module")
def most(no_ray, tmp_path_factory):
    """Sets how many images at once there is memory for, here and in each worker of a Ray of its own."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(EVERYWHERE)
    (folder / "most").write_text("0")
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
    patch.setenv("ORTHO_TEST_MOST_IMAGES", str(folder / "most"))
    here: dict[str, object] = {}
    exec(EVERYWHERE.replace("sys.meta_path.insert", "(lambda *_: None)"), here)
    for owner, method in ((DiffusersGenerator, "denoise"), (ClassNetwork, "forward")):
        patch.setattr(owner, method, here["limited"](getattr(owner, method)))
    patch.setenv("RAY_worker_niceness", "0")
    with fork_server() as workers:  # another than that of all tests, which began without the patch
        connect_ray(workers, num_cpus=4, include_dashboard=False)
        yield lambda images: (folder / "most").write_text(str(images))
        stop_ray()
    patch.undo()


@pytest.fixture(scope="module")
def commands(tiny_turbo, digits, most, tmp_path_factory):
    """A short run of each verb that computes, without its --out."""
    folder = tmp_path_factory.mktemp("inputs")
    pairs = copy_pairs(digits, folder / "pairs", 24)
    (folder / "prompts.txt").write_text("a red two\na blue three\n")
    model = ["--model", str(tiny_turbo)]
    of_pairs = ["--pairs", str(pairs), *model]
    search = ["--steps", "2", "--sensitivity-rank", "0", "--cpus-per-worker", "0.5", "--cpus-per-decoder", "0"]
    most(100)
    assigned = folder / "assigned"
    assert main(["assign", *of_pairs, "--out", str(assigned), *search, "--workers", "0", "--report", "false"]) == 0
    train = ["--assignments", str(assigned), *model, "--epochs", "1", "--batch-size", "8", "--tensorboard", "false"]
    reward = [
        *model,
        "--reward",
        "clip",
        "--reward-folders",
        "clip=ortho_core/evaluation/tiny-clip",
        "--patch-size",
        "2",
    ]
    short = ["--rows", "16", "--steps", "2", "--cpus-per-worker", "0.5", "--cpus-per-decoder", "0"]
    em = [*of_pairs, "--cycles", "1", "--assign.steps", "1", "--train.epochs", "1", "--train.batch-size", "8"]
    em += ["--heldout", "8", "--assign.cpus-per-worker", "0.5", "--assign.cpus-per-decoder", "0"]
    image = ["--prompt", "a red two", "--target-image", str(pairs / "images" / "0000.png")]
    return {
        "assign": [*of_pairs, *search],
        "reward": [*reward, *search, "--prompts", str(folder / "prompts.txt")],
        "reward of one": [*reward, "--prompt", "a red two", "--steps", "2"],
        "evaluate": [*of_pairs, *short],
        "invert": [*model, *image, "--steps", "2"],
        "generate": [*model, "--prompt", "a red two", "--count", "4"],
        "train": [*train, "--cpus-per-worker", "0.5"],
        "em": em,
    }


def last_line(verb, capsys):
    said = capsys.readouterr().err
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith(f"ortho {verb}: ")]
    return line


@pytest.mark.parametrize(
    ("name", "more", "less"),
    [
        ("assign", ["--workers", "0"], "--gradient-checkpointing"),
        ("assign", [], "--gradient-checkpointing"),
        pytest.param("reward", [], "--gradient-checkpointing", marks=pytest.mark.slow),
        ("reward of one", [], "--gradient-checkpointing"),
        ("evaluate", ["--workers", "0"], "--rewards none"),
        pytest.param("evaluate", ["--workers", "1"], "--rewards none", marks=pytest.mark.slow),
        ("invert", ["--dtype", "float32"], "--dtype float16"),
        ("generate", [], "--device cpu"),
        ("train", ["--num-workers", "0"], "--gradient-accumulation-steps"),
        ("train", [], "--gradient-accumulation-steps"),
        ("em", [], "--assign.gradient-checkpointing"),
    ],
)
def test_a_network_without_memory_ends_a_verb_in_one_line_with_options_of_that_verb(
    name, more, less, commands, most, capsys, tmp_path
):
    most(0)
    verb = name.split()[0]
    out = "--work-dir" if verb == "em" else "--out"
    assert main([verb, *commands[name], *more, out, str(tmp_path / "out")]) == 1
    line = last_line(verb, capsys)
    assert re.search(r"memory ran out (in ortho_core/\w+/\w+\.py, line \d+|with \d+ rows at once)", line)
    assert "Tried to allocate 2.50 GiB." in line
    assert re.search(r"this process used \d+\.\d GiB", line)
    assert less in line.partition("to need less: ")[2]
    assert "See documentation" not in line
    if verb in ("assign", "reward", "evaluate"):  # there is nothing left to halve
        assert "lower --" not in line


@pytest.mark.parametrize("name", ["assign", pytest.param("reward", marks=pytest.mark.slow), "evaluate"])
def test_the_slots_are_halved_as_often_as_it_takes(name, commands, most, tmp_path):
    most(1)
    out = tmp_path / "out"
    workers = [] if name == "reward" else ["--workers", "0"]
    assert main([name, *commands[name], *workers, "--out", str(out)]) == 0
    if name == "assign":
        most(100)
        assert main([name, *commands[name], "--workers", "0", "--slots", "1", "--out", str(tmp_path / "one")]) == 0
        assert_same(rows(out), rows(tmp_path / "one"), loss=0, skew=0)


def test_an_error_that_nothing_explains_keeps_its_place_across_processes(commands, most, capsys, tmp_path):
    most("what is no number")
    assert main(["assign", *commands["assign"], "--out", str(tmp_path / "out")]) == 1
    line = last_line("assign", capsys)
    assert re.search(r"a worker failed: ValueError in ortho_core/\w+/\w+\.py, line \d+: invalid literal for int", line)
    assert "the traceback is in " in line


def test_what_is_open_depends_on_what_is_set_and_on_the_memory_that_ran_out():
    job = TrainJob(
        assignments="a", model="m", out="o", batch_size=1, lora_rank=4, mixed_precision="fp16", num_workers=2
    )
    said = remedies(job)
    assert said[0] == "set --gradient-checkpointing"
    assert not any("--gradient-accumulation-steps" in one for one in said)  # there is one row
    assert remedies(job, host=True)[0] == "start fewer --num-workers"
    assert remedies(object()) == []
