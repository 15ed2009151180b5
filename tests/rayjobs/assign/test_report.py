"""The report of `ortho assign`: its numbers against the records, its pictures against the model, and what may go wrong."""

import base64
import html
import io
import re
import shutil
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ortho_core.pairs.images import decode_image
from ortho_core.pairs.pair_set import PairSet
from ortho_core.records.assignments import Assignments
from ortho_core.records.sampled import sampled_records
from ortho_core.storage.open import open_store
from rayjobs.assign import report
from rayjobs.assign.config import AssignJob
from rayjobs.assign.job import run
from rayjobs.assign.report import first_of_each_reason
from rayjobs.reports.summaries import AssignmentRun
from tests.chromium import check_in_browser, check_source
from tests.conftest import copy_pairs

CARD = re.compile(r"<figure>\n<div class=\"sides\">(.*?)</div>\n<figcaption><b>(.*?)</b>(.*?)</figcaption>", re.DOTALL)
IMAGE = re.compile(r'src="data:image/png;base64,([^"]+)"')


@pytest.fixture(scope="module")
def reported(tiny_turbo, digits, tmp_path_factory):
    """A run in this process of 24 rows, three of them bad, whose prompts hold markup."""
    folder = tmp_path_factory.mktemp("reported")
    pairs = copy_pairs(digits, folder / "pairs", 24)
    lines = (pairs / "pairs.jsonl").read_text().replace(" handwritten ", " <i>& ").splitlines()
    lines[3] = '{"prompt": "x", "image": "images/<gone>.png"}'
    lines[8] = '{"image": "images/0008.png"}'
    lines[9] = '{"prompt": "x", "image": "../../secret.png"}'
    (pairs / "pairs.jsonl").write_text("\n".join(lines))
    job = AssignJob(pairs=pairs, model=tiny_turbo, out=folder / "out", steps=3, rows_per_shard=8, slots=8, workers=0)
    assert run(job) == 3
    return job, folder / "out"


def records_of(out):
    return [row for part in sorted(out.glob("part-*")) for row in pq.read_table(part).to_pylist()]


def cards_of(text):
    """(images, prompt, what is said below) of each card, by the group's heading."""
    groups = re.split(r"<h3>(.*?)</h3>", text)
    return {
        title: [(IMAGE.findall(pictures), html.unescape(prompt), said) for pictures, prompt, said in CARD.findall(part)]
        for title, part in zip(groups[1::2], groups[2::2], strict=True)
        if CARD.search(part)
    }


def pixels(content):
    with Image.open(io.BytesIO(base64.b64decode(content))) as opened:
        return np.asarray(opened.convert("RGB")).astype(int)


def test_the_numbers_are_those_of_the_records(reported):
    job, out = reported
    text, records = (out / "report.html").read_text(), records_of(out)
    assert len(records) == 21
    before, after = (np.array([r[name] for r in records], dtype=float) for name in ("initial_loss", "loss"))
    quarters = [np.quantile(values, (0.25, 0.5, 0.75)) for values in (before, after)]
    assert "the search found noise at which the model makes a closer image" in text
    assert f"The median loss fell from {quarters[0][1]:.3g} to {quarters[1][1]:.3g}." in text
    assert f"Half of the images end between {quarters[1][0]:.3g} and {quarters[1][2]:.3g}" in text
    for values, quarter in zip((before, after), quarters, strict=True):
        cells = "</td>\n<td>".join(f"{value:.4g}" for value in (values.min(), *quarter, values.max()))
        assert cells in text
    assert f"{before.mean():.4f} → {after.mean():.4f}" in text
    assert f"{sum(r['evaluations'] for r in records):,}" in text
    cards = cards_of(text)
    assert list(cards) == ["The lowest losses", "The highest losses", "A sample", "The hardest rows"]
    ranked = sorted(records, key=lambda r: r["loss"])
    fallen = sorted(records, key=lambda r: -r["loss"] / r["initial_loss"])
    for title, rows in (
        ("The lowest losses", ranked[:6]),
        ("The highest losses", ranked[:5:-1][:9]),
        ("The hardest rows", fallen[:6]),
    ):
        assert [prompt for _, prompt, _ in cards[title]] == [row["prompt"] for row in rows]
        for (_, _, said), row in zip(cards[title], rows, strict=True):
            change = row["loss"] / row["initial_loss"] - 1
            assert f"loss {row['initial_loss']:.3g} → {row['loss']:.3g}, {change:+.0%}" in said
            assert row["image"] in said
    assert len(cards["A sample"]) == 9
    assert "come from a sample" not in text  # all rows were looked at
    assert str(job.pairs) in text


def test_the_pictures_are_the_target_and_what_the_model_makes_of_both_noises(reported, generator):
    job, out = reported
    found, records = Assignments(out), records_of(out)
    row = min(range(len(records)), key=lambda i: records[i]["loss"])
    shown, _, _ = cards_of((out / "report.html").read_text())["The lowest losses"][0]
    target, base, matched = map(pixels, shown)
    content = PairSet(job.pairs).fetch_image(records[row]["image"], "the best")
    assert np.array_equal(target, decode_image(content, generator.image_size))
    condition = generator.encode_prompts([records[row]["prompt"]])
    shape = generator.latent_shape
    with torch.no_grad():
        for picture, noise in ((base, found.base_noise([row], shape)), (matched, found.noise([row], shape))):
            image = generator.decode(generator.denoise(noise, condition)).clamp(0, 1)[0].permute(1, 2, 0) * 255
            assert np.abs(picture - image.numpy()).max() <= 1  # rounded


def test_what_was_not_used_is_shown_by_its_reason_and_nothing_is_markup(reported, tmp_path):
    _, out = reported
    text = (out / "report.html").read_text()
    assert "3 of 24 rows were not used: missing-image 1, missing-prompt 1 and outside-root 1." in text
    assert "images/&lt;gone&gt;.png" in text
    assert "<gone>" not in text
    assert "<i>" not in text
    assert "rows in pairs.jsonl" in text  # what was recognised
    images = check_source(out / "report.html")
    check_in_browser(out / "report.html", tmp_path / "browser", images)


def test_the_same_command_makes_a_report_that_is_not_there_and_a_target_that_has_gone_is_said(reported, tmp_path):
    job, out = reported
    moved = tmp_path / "out"
    shutil.copytree(out, moved)
    again = job.model_copy(update={"out": str(moved)})
    times = {path.name: path.stat().st_mtime_ns for path in moved.iterdir()}
    assert run(again) == 3
    assert {path.name: path.stat().st_mtime_ns for path in moved.iterdir()} == times
    (moved / "report.html").unlink()
    assert run(again.model_copy(update={"report": False})) == 3
    assert not (moved / "report.html").exists()
    best = min(records_of(out), key=lambda row: row["loss"])["image"]
    hidden = PairSet(job.pairs).image_root.location + "/" + best
    shutil.move(hidden, tmp_path / "hidden.png")
    try:
        assert run(again) == 3
    finally:
        shutil.move(tmp_path / "hidden.png", hidden)
    text = (moved / "report.html").read_text()
    assert {path.name: path.stat().st_mtime_ns for path in moved.glob("part-*")}.items() <= times.items()
    first = cards_of(text)["The lowest losses"][0]
    assert len(first[0]) == 2
    assert re.search(rf'class="none"[^>]*>[^<]*{best}[^<]*does not exist', text)
    # The other cards are as they were.
    before = cards_of((out / "report.html").read_text())
    assert cards_of(text)["The highest losses"] == before["The highest losses"]


def test_a_report_that_fails_leaves_the_run_finished(reported, tmp_path, capfd, monkeypatch):
    job, out = reported
    broken = tmp_path / "out"
    shutil.copytree(out, broken)
    (broken / "report.html").unlink()
    again = job.model_copy(update={"out": str(broken)})

    def fails(*_):
        raise ValueError("two\nlines")

    capfd.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(report, "choose", fails)
        assert run(again) == 3
    (said,) = [line for line in capfd.readouterr().err.splitlines() if "report.html" in line]
    assert re.fullmatch(r"assign: report\.html could not be written \(.+\); the run is complete; .+ to write it", said)
    assert not (broken / "report.html").exists()
    assert run(again) == 3
    assert (broken / "report.html").exists()


def test_a_set_that_is_only_looked_at_in_part_says_so(reported, tmp_path, monkeypatch):
    job, out = reported
    part = tmp_path / "out"
    shutil.copytree(out, part)
    (part / "report.html").unlink()
    monkeypatch.setattr("rayjobs.assign.report.sampled_records", partial(sampled_records, rows=6))
    assert run(job.model_copy(update={"out": str(part)})) == 3
    text = (part / "report.html").read_text()
    assert "come from a sample of 6 of the 21 rows" in text
    assert sum(map(len, cards_of(text).values())) == 3 + 3 + 6 + 6


def test_examples_are_of_each_reason(reported):
    found = first_of_each_reason(open_store(reported[1]))
    counts = AssignmentRun.read(reported[1] / "summary.json").quarantined_by_reason
    assert {reason: len(rows) for reason, rows in found.items()} == counts
