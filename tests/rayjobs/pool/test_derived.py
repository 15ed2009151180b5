"""What a finished run made of its parts: lost or damaged, it is made again by the same command, and nothing else changes."""

import os
import shutil

import pytest

from benchmarks.same_results import content_of, differences
from ortho_core.evaluation.features import TINY_CLIP
from rayjobs.cli import main

#: What a summary says of the command that wrote it, and the receipts, which have times.
OF_ONE_START = ("files.", "config.out", "config.verify")
VERBS = {
    "assign": ("--steps", "1"),
    "evaluate": ("--rows", "24", "--steps", "2"),
    "reward": ("--reward", "clip", "--reward-folders", f"clip={TINY_CLIP}", "--steps", "1"),
}


@pytest.fixture(scope="module", params=["assign", "evaluate", pytest.param("reward", marks=pytest.mark.slow)])
def finished(request, tiny_turbo, digits, tmp_path_factory):
    """A finished run's command without its folder, and the folder."""
    folder = tmp_path_factory.mktemp(request.param)
    command = [request.param, "--model", str(tiny_turbo), *VERBS[request.param]]
    if request.param == "reward":
        (folder / "prompts.txt").write_text("a red one\na blue two\n")
        command += ["--prompts", str(folder / "prompts.txt")]
    else:
        command += ["--pairs", str(digits), "--part", "heldout:24"]
    if request.param != "reward":  # whose pictures a worker takes
        command += ["--workers", "0"]
    assert main([*command, "--out", str(folder / "out")]) == 0
    return command, folder / "out"


def damaged(finished, tmp_path, damage, passed_over=()):
    """A copy with all but the `passed_over` damaged, and the names of what was."""
    out = tmp_path / "out"
    shutil.copytree(finished[1], out)
    files = [f for f in out.rglob("*") if f.is_file() and not any(name in f.name for name in passed_over)]
    for file in files:
        damage(file)
    return out, [str(file) for file in files]


def cut_short(file):
    os.truncate(file, file.stat().st_size // 2)


def alter(file):
    """A byte within, at the same size and time."""
    before, content = file.stat(), bytearray(file.read_bytes())
    if content:
        content[len(content) // 2] ^= 0x01
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def assert_mended(finished, out, *more):
    assert main([*finished[0], "--out", str(out), *more]) == 0
    differing = differences(content_of(out), content_of(finished[1]))
    assert not [place for place in differing if not any(word in place for word in OF_ONE_START)]
    assert not list(out.rglob(".*"))


@pytest.mark.parametrize("damage", [os.unlink, cut_short])
def test_all_but_the_parts_and_the_plan_is_made_again(finished, damage, tmp_path, capsys):
    out, names = damaged(finished, tmp_path, damage, ("part-", "plan.json"))
    assert len(names) > 3
    assert_mended(finished, out)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert main([*finished[0], "--out", str(out)]) == 0
    assert "made again" not in capsys.readouterr().err


def test_each_file_that_is_lost_alone_is_said_and_made_again(finished, tmp_path, capsys):
    out, _ = damaged(finished, tmp_path, lambda file: None)
    for name in ("failures.jsonl", "pictures/before.png", "evaluation.parquet", "orthogonal_gaussian_init.png"):
        if (out / name).exists():
            (out / name).unlink()
            assert main([*finished[0], "--out", str(out)]) == 0
            assert f"{out / name} is missing: it is made again from the parts" in capsys.readouterr().err
            assert (out / name).exists()


def test_parts_that_are_lost_are_searched_for_again(finished, tmp_path):
    out, names = damaged(finished, tmp_path, os.unlink, ("plan.json", "summary", "png", "html", ".jsonl", "evaluation"))
    assert all("part-" in name or name.endswith("json") for name in names)
    assert_mended(finished, out)


@pytest.mark.parametrize("damage", [os.unlink, cut_short])
def test_a_plan_that_is_lost_is_written_anew_since_the_parts_say_whose_they_are(finished, damage, tmp_path):
    out, _ = damaged(finished, tmp_path, lambda file: None)
    damage(out / "plan.json")
    assert_mended(finished, out)


def test_what_changed_within_and_looks_as_before_is_found_by_verifying(finished, tmp_path, capsys):
    out, names = damaged(finished, tmp_path, alter, ("plan.json", "summary.json", "evaluation.json", "html", "part-"))
    assert_mended(finished, out, "--verify")
    said = capsys.readouterr().err
    assert all(f"{name} has another checksum" in said for name in names if os.path.getsize(name))
    for part in out.rglob("part-*"):
        alter(part)
    assert_mended(finished, out, "--verify")
    assert main([*finished[0], "--out", str(out), "--verify"]) == 0
    assert "have the checksums they were written with" in capsys.readouterr().err
