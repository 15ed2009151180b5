"""Places: an existing path first, then a pattern, then a split; what this program wrote; folders of all kinds of trouble."""

import subprocess
import sys

import pytest

from ortho_core.errors import NoPairSet, UserError
from ortho_core.pairs.listing import scan
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import PairFields
from ortho_core.storage.local import LocalStore
from tests.ortho_core.pairs.made import (
    line,
    outcomes,
    png,
    prompts,
    refusal,
    write_captions,
    write_images,
    write_lines,
    write_parquet,
    write_set,
)

PROMPTS = [f"prompt {i}" for i in range(5)]


def measured(location) -> tuple[str, float]:
    """The line of a set, and the CPU seconds that it took in a process whose annotations are not checked."""
    program = (
        "import sys, time; from ortho_core.pairs.pair_set import PairSet; began = time.process_time(); "
        "print(PairSet(sys.argv[1]).line()); print(time.process_time() - began)"
    )
    done = subprocess.run([sys.executable, "-c", program, location], capture_output=True, text=True, check=True)
    said, seconds = done.stdout.splitlines()
    return said, float(seconds)


@pytest.mark.parametrize("name", ["brackets [v2]", "what?", "a*b", "[abc]", "sp ace", "é"])
def test_an_existing_path_is_a_path_whatever_signs_are_in_its_name(tmp_path, name):
    for kind in ("pairs.jsonl", "parquet", "tar"):
        folder = write_set(kind, tmp_path / f"{kind[:3]} {name}", PROMPTS)
        assert PairSet(folder).rows() == 5
        for file in folder.glob("*.*"):
            assert PairSet(file).rows() in (2, 3, 5)
    write_captions(tmp_path / name, {"a.png": "x"})
    assert prompts(tmp_path / name) == {"a.png": "x"}
    named = write_parquet(tmp_path / "files" / f"{name}.parquet", text=["x"], image=[png()])
    assert PairSet(named).rows() == 1


def test_a_pattern_is_one_where_no_such_path_exists(tmp_path):
    for name in ("a1.parquet", "a2.parquet", "b1.parquet", ".a3.parquet"):
        write_parquet(tmp_path / name, text=[name], image=[png()])
    assert list(prompts(tmp_path / "a[12].parquet").values()) == ["a1.parquet", "a2.parquet"]
    assert list(prompts(tmp_path / "?1.parquet").values()) == ["a1.parquet", "b1.parquet"]
    write_parquet(tmp_path / "?1.parquet", text=["itself"], image=[png()])
    assert list(prompts(tmp_path / "?1.parquet").values()) == ["itself"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("plan.json", '{"kind": "reconstruction", "run_fingerprint": "0"}'),
        ("meta.json", '{"versions": {"ortho": "0.1"}}'),
        ("model_index.json", '{"_class_name": "StableDiffusionXLPipeline"}'),
        ("lora.json", '{"base_model": "m", "base_fingerprint": "0"}'),
        ("config.json", '{"kind": "class-conditional"}'),
    ],
)
def test_what_this_program_wrote_is_never_pairs(tmp_path, file, content):
    write_parquet(tmp_path / "data.parquet", prompt=PROMPTS, image=[png()] * 5)
    before = PairSet(tmp_path).fingerprint()
    out = tmp_path / "runs" / "a"
    write_parquet(out / "part-000000-0123.parquet", prompt=PROMPTS, image=["data.parquet#0"] * 5)
    write_captions(out / "pictures", {"a.png": "x"})
    (out / file).write_text(content)
    assert PairSet(tmp_path).rows() == 5
    assert PairSet(tmp_path).fingerprint() == before
    assert "left aside: runs/a/ (" in line(tmp_path)
    assert ", not a pair set" in refusal(out)
    write_lines(out / "pairs.jsonl", {"prompt": "x", "image": "pictures/a.png"})
    if file == "plan.json":
        assert ", not a pair set" in refusal(out)
    (out / file).write_text('{"something": "else"}')
    assert PairSet(out / "pairs.jsonl").rows() == 1


def test_a_real_run_inside_a_pair_set_is_not_read(tmp_path, digits):
    import shutil

    from ortho_core.records.plan import ReconstructionPlan

    shutil.copytree(digits, tmp_path / "set")
    (tmp_path / "set" / "pairs.jsonl").rename(tmp_path / "set" / "metadata.jsonl")
    (tmp_path / "set" / "heldout.jsonl").unlink()
    noise = {
        "seed": 0,
        "transform": "free",
        "patch_size": 1,
        "regions": 1,
        "store": "parameters",
        "store_latents": False,
    }
    plan = ReconstructionPlan(
        pairs_fingerprint="0", model_fingerprint="0", noise=noise, config={}, rows=1, rows_per_shard=1, shards=1
    )
    rows = PairSet(tmp_path / "set").rows()
    (tmp_path / "set" / "run").mkdir()
    (tmp_path / "set" / "run" / "plan.json").write_text(plan.text())
    write_captions(tmp_path / "set" / "run", {"a.png": "x"})
    assert PairSet(tmp_path / "set").rows() == rows
    assert "run/ (the output of `ortho`)" in line(tmp_path / "set")


def test_what_lies_there_is_said_where_nothing_is_read(tmp_path):
    assert "found nothing" in refusal(tmp_path)
    (tmp_path / ".hidden").touch()
    assert "found nothing, 1 hidden name" in refusal(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("a.doc", "sub/b.doc", "c.xyz"):
        (tmp_path / name).touch()
    with pytest.raises(
        NoPairSet, match=r"no pair set at .*: found 2 \.doc, 1 \.xyz in 2 folders, 1 hidden name; expected"
    ):
        PairSet(tmp_path)
    write_images(tmp_path, "x.png")
    assert (
        "found 2 .doc, 1 .xyz, 1 .png in 2 folders, 1 hidden name. It could be 1 image with one prompt for all"
        in refusal(tmp_path)
    )
    for archive in ("images.zip", "more.tar.gz"):
        (tmp_path / archive).touch()
        assert "unpack" in refusal(tmp_path / archive)
    assert ".zip" in refusal(tmp_path)


def test_a_file_of_no_rows_and_a_place_that_is_not_there(tmp_path):
    write_images(tmp_path, "a.png")
    assert "no pair set at" in refusal(tmp_path / "a.png")
    for name in ("none", "none/train", "none.csv", "no*ne.parquet"):
        assert "no pair set at" in refusal(tmp_path / name)


def test_circles_of_links_hidden_names_and_folders_that_cannot_be_read_end_nothing(tmp_path, monkeypatch):
    import os

    write_captions(tmp_path / "set", {"a.png": "x", "sub/b.png": "y", "closed/c.png": "z", ".git/d.png": "w"})
    (tmp_path / "set" / "sub" / "up").symlink_to(tmp_path / "set", target_is_directory=True)
    (tmp_path / "set" / "loop.png").symlink_to(tmp_path / "set" / "loop.png")
    (tmp_path / "set" / "__MACOSX").mkdir()
    (tmp_path / "set" / "__MACOSX" / "._a.png").touch()
    (tmp_path / "set" / "._a.png").touch()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert prompts(tmp_path / "set") == {"a.png": "x", "sub/b.png": "y"}
    said = line(tmp_path / "set")
    assert "1 folder that cannot be read (closed: Permission denied)" in said
    assert "1 linked folder (sub/up: links are not followed)" in said
    assert "2 hidden names" in said


@pytest.mark.slow
def test_a_hundred_thousand_files_are_seen_in_seconds_and_in_little_memory(tmp_path):
    import tracemalloc

    for i in range(100):
        (tmp_path / f"{i:02d}").mkdir()
        for j in range(500):
            (tmp_path / f"{i:02d}" / f"{j:03d}.png").touch()
            (tmp_path / f"{i:02d}" / f"{j:03d}.txt").touch()
    said, seconds = measured(tmp_path)
    assert "50000 images" in said
    assert seconds < 5
    tracemalloc.start()
    listing = scan(LocalStore(tmp_path))
    kept, high = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert listing.images == 50_000
    assert kept < 200_000
    assert high < 3_000_000


@pytest.mark.slow
def test_a_million_rows_are_told_in_seconds(tmp_path):
    with (tmp_path / "pairs.jsonl").open("w") as stream:
        for i in range(1_000_000):
            stream.write(f'{{"prompt": "a prompt of some length, number {i}", "image": "images/{i}.png"}}\n')
    said, seconds = measured(tmp_path)
    assert "1000000 rows" in said
    assert seconds < 5


def test_what_was_recognised_is_kept_for_machines_too(tmp_path):
    write_captions(tmp_path, {"10_x/a.png": "1", "masks/a.png": ""})
    (tmp_path / "masks" / "a.txt").unlink()
    record = PairSet(tmp_path).record()
    assert record == {
        "layout": "captions",
        "what": "images with caption files, in 1 folder",
        "part": None,
        "rows": 1,
        "images": None,
        "prompts": "captions from .txt beside each image",
        "notes": ["the repeats of 10_x are not applied, each image is one row"],
        "left_aside": ["1 image in masks/ (masks or conditions)"],
    }


def test_a_split_of_a_set_that_has_none_is_refused(tmp_path):
    write_set("pairs.jsonl", tmp_path, PROMPTS)
    with pytest.raises(UserError, match=r"no split 'train' in .*: no folder or file in it has the name of a split"):
        PairSet(tmp_path, PairFields(split="train"))
    with pytest.raises(NoPairSet):
        PairSet(tmp_path / "train")
    assert outcomes(tmp_path)[0] == "000000_0000"
