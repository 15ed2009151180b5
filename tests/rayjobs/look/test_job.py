"""`ortho look`: what it finds in a set whose faults are known, what it writes, and that it starts at once."""

import io
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from rayjobs.cli import main
from rayjobs.look.config import LookJob
from rayjobs.look.job import run
from tests.chromium import check_in_browser, check_source
from tests.conftest import ROOT, mixed_pairs
from tests.ortho_core.pairs.made import write_lines

NASTY = "<script>alert('1')</script> & \"quotes\""


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def faulty(tmp_path):
    """Ten images with a fault or a peculiarity each, in a folder with caption files."""
    folder = tmp_path / "set"
    folder.mkdir()
    captions = {}
    for i, (size, caption) in enumerate(
        [
            ((512, 512), "a cat"),
            ((512, 512), NASTY),
            ((600, 300), "a cat"),
            ((256, 640), "many words " * 60),
            ((1024, 768), "IMG_2044"),
            ((512, 512), ""),
            ((64, 64), "a small one"),
        ]
    ):
        picture(i, size).save(folder / f"{i}.png")
        captions[f"{i}"] = caption
    picture(0, (512, 512)).convert("CMYK").save(folder / "7.jpg", quality=95)
    shutil.copy(folder / "0.png", folder / "8.png")
    (folder / "9.png").write_bytes(b"junk")
    captions |= {"7": "in print", "8": "a dog", "9": "broken"}
    for name, caption in captions.items():
        (folder / f"{name}.txt").write_text(caption)
    return folder


def test_the_faults_of_a_set_are_found_shown_and_said(faulty, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["look", str(faulty), "--out", str(out)]) == 3
    said = capsys.readouterr().err
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["rows"], summary["looked_at"], summary["usable"], summary["unusable"]) == (10, 10, 8, 2)
    assert summary["recognised"]["layout"] == "captions"
    assert summary["unusable_by_reason"] == {"missing-prompt": 1, "undecodable-image": 1}
    captions, sizes, copies = summary["captions"], summary["sizes"], summary["copies"]
    assert (captions["empty"], captions["too_long"], captions["tokens"][2]) == (1, 1, 122)
    assert (captions["different"], captions["like_file_names"], captions["most_common"]["a cat"]) == (7, 1, 2)
    assert (sizes["smallest"], sizes["largest"], sizes["enlarged"], sizes["most_enlarged"]) == (
        [64, 64],
        [1024, 768],
        3,
        8,
    )
    assert sizes["modes"] == {"colour": 7, "CMYK": 1}
    assert sizes["most_lost"] == pytest.approx(0.6)
    assert (sizes["much_lost"], sizes["most_common"]["512×512"]) == (2, 4)
    assert (copies["identical"], copies["other_prompts"], copies["nearly_alike"]) == (1, 1, 1)
    for words in (
        "pairs: images with caption files",
        "Looked at all 10 rows: 8 can be used, 2 cannot (missing-prompt 1, undecodable-image 1).",
        "7 different prompts for 8 images. 1 prompt is longer than CLIP's 77 tokens",
        "1 prompt looks like a file name.",
        "1 image is a copy of another, pixel for pixel; 1 image looks nearly like another. The copies of 1 image have",
        "3 images (38%) would be enlarged to reach 512 pixels, up to 8.0 times.",
        "60% at most; 2 pictures lose more than a third.",
        "Not plain colour: 1 CMYK.",
    ):
        assert words in said
    text = (out / "report.html").read_text()
    assert NASTY not in text
    assert "&lt;script&gt;alert" in text
    assert "60% cut off; 3.png" in text
    assert "9.png does not decode" in text
    check_in_browser(out / "report.html", tmp_path / "profile", check_source(out / "report.html"))


def test_a_sample_says_so_and_the_same_look_finds_the_same(digits, tmp_path, capsys):
    out = tmp_path / "out"
    for _ in range(2):
        assert main(["look", "--rows", "40", "--size", "32", "--out", str(out), str(digits)]) == 0
        summary = json.loads((out / "summary.json").read_text())
        seconds = summary.pop("seconds")
        assert seconds > 0
        text = re.sub(r"This took [^.]*\.[^.]*\.", "", (out / "report.html").read_text())
    assert (summary["rows"], summary["looked_at"]) == (512, 40)
    said = capsys.readouterr().err
    assert said.count("Looked at 40 of 512 rows, spread over the whole set: all can be used.") == 2
    assert "All are 32×32. None is smaller than 32." in said
    assert text.count("<img") == 40
    assert (out / "report.html").stat().st_size < 200_000


def test_a_set_without_a_usable_row_still_has_its_report(tmp_path):
    write_lines(tmp_path / "set" / "pairs.jsonl", {"prompt": "x", "image": "gone.png"})
    assert main(["look", str(tmp_path / "set"), "--out", str(tmp_path / "out")]) == 3
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["sizes"] is None
    assert "missing-image" in (tmp_path / "out" / "report.html").read_text()


def test_classes_are_no_names_of_files(tmp_path, digits):
    for name in ("0001", "0002"):
        (tmp_path / "set" / name).mkdir(parents=True)
        shutil.copy(digits / "images" / "0000.png", tmp_path / "set" / name / "0.png")
    assert main(["look", str(tmp_path / "set"), "--layout", "classes", "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["captions"]["like_file_names"] == 0


def test_a_dry_run_writes_nothing_and_a_folder_of_something_else_is_left_alone(digits, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["look", str(digits), "--out", str(out), "--dry-run"]) == 0
    said = yaml.safe_load(capsys.readouterr().out)
    assert (said["recognised"]["rows"], said["rows_looked_at"]) == (512, 512)
    assert not out.exists()
    out.mkdir()
    (out / "summary.json").write_text("{}")
    (out / "plan.json").write_text("{}")
    assert main(["look", str(digits), "--out", str(out)]) == 1
    assert "was not made by `ortho look` (it contains plan.json)" in capsys.readouterr().err
    assert (out / "summary.json").read_text() == "{}"


def test_it_imports_neither_torch_nor_ray(digits, tmp_path):
    program = (
        "import sys; from rayjobs.cli import main\n"
        f"assert main(['look', {str(digits)!r}, '--rows', '4', '--out', {str(tmp_path / 'out')!r}]) == 0\n"
        "heavy = {'torch', 'ray', 'transformers', 'matplotlib', 'open_clip'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_place_with_a_password_is_read_and_kept_and_shown_without(tmp_path, capsys):
    import fsspec

    place = "memory://alice:s3cret@box/set"
    content = io.BytesIO()
    picture(1, (64, 64)).save(content, "PNG")
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/alice:s3cret@box/set/0.png", content.getvalue())
    memory.pipe_file(
        "/alice:s3cret@box/set/pairs.jsonl", b'{"image": "0.png", "prompt": "a"}\n{"image": "1.png", "prompt": "b"}\n'
    )
    assert main(["look", place, "--out", str(tmp_path / "out")]) == 3
    assert main(["look", place, "--out", str(tmp_path / "out"), "--print-config"]) == 0
    assert main(["look", f"{place}/none?key=s3cret", "--out", str(tmp_path / "other")]) == 1
    told = capsys.readouterr()
    kept = [told.out, told.err, *(file.read_text() for file in (tmp_path / "out").iterdir())]
    assert "memory://user:***@box/set" in told.out
    assert not [text for text in kept if "s3cret" in text or "alice" in text]


def test_the_crop_of_several_sizes_is_told_beside_that_of_the_square(digits, tmp_path, capfd):
    pairs = mixed_pairs(digits, tmp_path / "pairs", 20)
    assert run(LookJob(pairs=str(pairs), out=tmp_path / "look", size=48)) == 0
    sizes = json.loads((tmp_path / "look" / "summary.json").read_text())["sizes"]
    found = sizes["buckets"]
    assert found["sizes"] == 5
    assert sum(found["images"].values()) == 20
    assert found["mean_lost"] < sizes["mean_lost"] / 2
    said = capfd.readouterr().err
    assert "With 5 sizes of one area (--buckets) it cuts off 12% on average, 16% at most." in said
    assert run(LookJob(pairs=str(pairs), out=tmp_path / "none", size=48, buckets="none")) == 0
    assert json.loads((tmp_path / "none" / "summary.json").read_text())["sizes"]["buckets"] is None
    listed = LookJob(pairs=str(pairs), out=tmp_path / "list", buckets="32x32,64x16")
    assert run(listed) == 0
    assert json.loads((tmp_path / "list" / "summary.json").read_text())["sizes"]["buckets"]["sizes"] == 2
