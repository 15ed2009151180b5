"""EM over pictures of several shapes, with a model like SDXL: every step at the size of each picture."""

import json

import pyarrow.parquet as pq
import pytest
from PIL import Image

from ortho_core.generators.model_folder import ModelFolder
from ortho_core.pictures import load_sheet
from ortho_core.records.assignments import Assignments
from rayjobs.em.job import describe, ending, run
from rayjobs.reports.summaries import Evaluation
from tests.chromium import check_source
from tests.conftest import mixed_pairs
from tests.rayjobs.em.test_job import ALL_HERE, job
from tests.small_pipelines import save_stable_diffusion_xl

pytestmark = pytest.mark.usefixtures("ray_session")
BUCKETS = "32x48,32x32,48x32"


@pytest.fixture(scope="module")
def done(tiny_turbo, digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("em")
    model = save_stable_diffusion_xl(tiny_turbo, folder / "sdxl")
    pairs, heldout = (mixed_pairs(digits, folder / name, rows) for name, rows in (("pairs", 24), ("heldout", 30)))
    judge = ALL_HERE["evaluate"].model_copy(update={"rows": 30})
    settings = {**ALL_HERE, "evaluate": judge, "heldout": heldout, "buckets": BUCKETS}
    one = job(pairs, model, digits, folder / "run", **settings)
    assert run(one) == 0
    return one


def test_every_cycle_and_the_evaluation_have_the_sizes(done):
    out = done.work_dir
    for cycle in ("cycle_01", "cycle_02"):
        plan = Assignments(out / cycle / "assignments").plan
        assert plan.framing((32, 32)).sizes == ((48, 32), (32, 32), (32, 48))
        made = ModelFolder.open(out / cycle / "train" / "checkpoint-final")
        assert made.recipe.buckets == tuple(BUCKETS.split(","))
    summary = json.loads((out / "em_summary.json").read_text())
    assert set(summary["evaluation"]) == {"base", "direct", "cycle_01", "cycle_02"}
    assert ending(done, 0)[-1].startswith("next: ortho generate --model")
    assert "--size" not in ending(done, 0)[-1]


def test_pictures_keep_their_shape_and_figures_are_told_by_size(done):
    folder = done.work_dir / "evaluation"
    evaluation = Evaluation.read(folder / "evaluation.json")
    assert evaluation.image_size == (48, 48)
    table = pq.read_table(folder / "evaluation.parquet").to_pandas()
    base = table[table["model"] == "base"]
    counts = base.groupby(["width", "height"]).size().to_dict()
    assert counts == {(32, 48): 12, (32, 32): 12, (48, 32): 6}
    # Six rows are too few for figures.
    assert set(evaluation.by_size) == {"32x48", "32x32"}
    for size, models in evaluation.by_size.items():
        width, height = map(int, size.split("x"))
        mine = base[(base["width"] == width) & (base["height"] == height)]
        assert models["base"]["latent_mse"].value == pytest.approx(mine["latent_mse"].mean(), rel=1e-5)
        assert set(models) == set(evaluation.metrics)
    # In the order of the pairs, not of the sizes.
    assert base["image"].tolist() == [f"images/{number:04d}.png" for number in range(30)]
    cells = load_sheet(folder / "pictures" / "targets.png", (48, 48))
    for cell, width, height in zip(cells, base["width"], base["height"], strict=False):
        top, left = (48 - height) // 2, (48 - width) // 2
        assert (cell[:, :top] == 255).all()
        assert (cell[:, :, :left] == 255).all()
    assert check_source(done.work_dir / "report.html") > 0
    text = (done.work_dir / "report.html").read_text()
    assert "By size of the images" in text
    assert "6 rows are of sizes with too few rows for figures" in text
    with Image.open(done.work_dir / "comparison.png") as sheet:
        assert sheet.width > 300


def test_the_same_command_finds_it_done_and_a_dry_run_names_the_sizes(done, capfd):
    assert run(done) == 0
    assert "cycle_02/assignments is complete" in capfd.readouterr().err
    plan = describe(done)
    assert plan["config"]["sizes"] == BUCKETS.split(",")
