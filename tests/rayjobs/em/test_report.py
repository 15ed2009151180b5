"""The report of an EM run and of an evaluation, from folders as they are left."""

import base64
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from ortho_core.evaluation.samples import from_png
from ortho_core.pictures import load_sheet
from rayjobs.em import report as em_report
from rayjobs.evaluate import report as evaluate_report
from rayjobs.reports.summaries import EM_SUMMARY, EmSummary
from tests.chromium import check_in_browser, check_source
from tests.rayjobs.reports.reported import MODELS, make_em, make_evaluation


@pytest.fixture(scope="module")
def run(assigned, tmp_path_factory):
    folder = tmp_path_factory.mktemp("em")
    make_em(folder, assigned[1])
    em_report.write_report(folder)
    return folder


def test_an_em_report_has_its_pictures_and_nothing_from_elsewhere(run):
    # Targets and four models, twelve columns, at plain noise (two models at another, too) and closest; the Gaussian check.
    assert check_source(run / "report.html") == (7 + 5) * 12 + 2
    assert (run / "report.html").stat().st_size < 3e6


def test_the_first_pictures_are_the_samples_at_plain_noise_and_the_closest_come_second(run):
    """Each picture that is embedded is that of the evaluation's contact sheets, in its column."""
    expected = [
        ("held-out target", "targets"),
        ("base model", "base-samples"),
        ("direct SFT", "direct-samples"),
        ("direct SFT, another noise", "direct-others"),
        ("matched SFT, cycle 1", "cycle_01-samples"),
        ("matched SFT, cycle 2", "cycle_02-samples"),
        ("matched SFT, cycle 2, another noise", "cycle_02-others"),
        ("held-out target", "targets"),
        ("base model", "base-closest"),
        ("direct SFT", "direct-closest"),
        ("matched SFT, cycle 1", "cycle_01-closest"),
        ("matched SFT, cycle 2", "cycle_02-closest"),
    ]
    sheets = run / "evaluation" / "pictures"
    shown = embedded(run / "report.html")
    assert [label for label, _ in shown] == [label for label, _ in expected]
    for (label, images), (_, stem) in zip(shown, expected, strict=True):
        assert torch.equal(images, load_sheet(sheets / f"{stem}.png", (32, 32))[:12]), label
    text = (run / "report.html").read_text()
    assert text.index("Samples at plain noise") < text.index("<img") < text.index("The closest images")
    # The two pictures beside the report have the same images, in rows of twelve that are twice as large.
    for name, rows in (("comparison.png", shown[:7]), ("closest.png", shown[7:])):
        with Image.open(run / name) as picture:
            enlarged = torch.from_numpy(np.array(picture))[:, 150:].unfold(0, 64, 67).unfold(1, 64, 67)[..., ::2, ::2]
        assert torch.equal(enlarged, torch.stack([images for _, images in rows])), name


def embedded(report):
    """The label of each row of pictures, and its images (12, 3, Y, X)."""
    found = []
    for label, row in re.findall(r'<tr><th scope="row">(.+?)</th>(<td><img .+?)</tr>', report.read_text()):
        images = re.findall(r"base64,([^\"]+)", row)
        found.append((label, torch.stack([from_png(base64.b64decode(image)) for image in images])))
    return found


def test_an_em_report_says_what_the_figures_say(run):
    text = (run / "report.html").read_text()
    first, second, *_ = re.findall(r"<p>(.+?)</p>", text)
    assert first.startswith(
        "After 2 cycles of fine-tuning, the images that a user of the model gets are nearer to the held-out images than"
    )
    assert second.startswith(
        "KID, the distance of the set of these images from the set of targets, fell from 0.0530 to 0.0257; direct"
    )
    facts = re.findall(r"<dt>(.+?)</dt><dd>(.+?)</dd>", text)
    assert facts[0] == ("KID, base → tuned", "0.0530 → 0.0257")
    assert [label.split(",")[0] for label, _ in facts[1:4]] == [
        "diversity",
        "closest images&#39; latent MSE",
        "drift from the base model",
    ]
    assert "worse than direct SFT, with intervals that do not overlap, in KID" in text
    assert "a &lt;b&gt;red&lt;/b&gt; digit, number 3" in text
    for cycle in (1, 2):
        assert f'<a href="cycle_0{cycle}/assignments/report.html">cycle {cycle}</a>' in text
    titles = re.findall(r"<h3>(.+?)</h3>", text)
    assert titles[-5:] == [
        "training loss",
        "latent loss",
        "latent drift at random noise",
        "held-out latent MSE",
        "held-out drift",
    ]


def test_the_cycles_follow_each_other_on_one_axis(run):
    charts = em_report.curves(run, EmSummary.read(run / EM_SUMMARY))
    first, second, direct = charts[0].series
    assert (first.x[0], first.x[-1], second.x[0], second.x[-1]) == (1, 60, 61, 120)
    assert (direct.x[0], direct.x[-1]) == (1, 60)
    assert charts[-1].series[0].label == "matched SFT, cycle 1"


def test_what_a_step_cost_is_its_time_on_its_workers(run):
    summary = EmSummary.read(run / EM_SUMMARY)
    steps = em_report.phases(run, summary, None)
    assert [step.name for step in steps][1:] == ["cycle 1, M-step", "cycle 2, E-step", "cycle 2, M-step", "direct SFT"]
    assert steps[1].cells() == ["cycle 1, M-step", "60 updates", "48 s", "75 images/s", "2 × 0.5 CPU", "0.0134"]
    assert steps[0].cells()[4] == "2 × 1 CPU"


def test_a_browser_shows_the_em_report(run, tmp_path):
    check_in_browser(run / "report.html", tmp_path / "browser", images=146)


def test_without_held_out_pairs_the_report_says_so(assigned, tmp_path):
    make_em(tmp_path, assigned[1], cycles=1, evaluated=False, validated=False)
    em_report.write_report(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert check_source(tmp_path / "report.html") == 2
    assert "because no pairs were held out" in text
    assert not list(tmp_path.glob("*.png"))


def test_the_report_of_an_evaluation(tmp_path):
    make_evaluation(tmp_path, rows=20, quarantined=2)
    (tmp_path / "failures.jsonl").write_text(
        json.dumps({"sample_id": "000003", "row": 3, "reason": "missing-prompt", "message": "row 3: <no> prompt"})
        + "\n"
    )
    evaluate_report.write_report(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "Nearest to the held-out images at plain noise (KID): direct (0.0200); base has 0.0530." in text
    assert [label for label, _ in embedded(tmp_path / "report.html")][4:6] == ["cycle_02", "cycle_02, another noise"]
    assert "row 3: &lt;no&gt; prompt" in text
    assert "20 + 2" in text
    assert "missing-prompt 1" in text
    assert check_source(tmp_path / "report.html") == (6 + 5) * 12
    check_in_browser(tmp_path / "report.html", tmp_path / "browser", images=132)


@pytest.mark.parametrize(
    ("count", "rows", "size", "columns"), [(1, 1, (32, 32), 1), (2, 5, (256, 192), 5), (4, 70, (64, 64), 12)]
)
def test_an_evaluation_of_any_size_and_number_of_models(tmp_path, count, rows, size, columns):
    make_evaluation(tmp_path, dict(list(MODELS.items())[:count]), rows=rows, size=size)
    evaluate_report.write_report(tmp_path)
    assert check_source(tmp_path / "report.html") == (2 * (count + 1) + 1) * columns
    assert (tmp_path / "report.html").stat().st_size < 4e6
