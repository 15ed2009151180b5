"""The E-step job from an object store to an object store, over HTTP."""

import json
import shutil

import pytest

from ortho_core.errors import UserError
from ortho_core.pairs.pair_set import PairSet
from ortho_core.records.assignments import Assignments
from ortho_core.storage.open import open_store
from rayjobs.assign.config import AssignJob
from rayjobs.assign.job import run
from rayjobs.train.config import TrainJob
from rayjobs.train.job import make_plan
from rayjobs.train.models import TrainModels
from tests.chromium import check_source
from tests.conftest import copy_pairs, start_ray
from tests.rayjobs.same import assert_same, rows

SETTINGS = {"steps": 4, "rows_per_shard": 8, "slots": 8, "cpus_per_worker": 0.5}


@pytest.fixture(scope="module")
def bucket(s3, no_ray):
    """An empty bucket that the workers of this module's Ray can reach: they inherit the environment at its start."""
    start_ray()
    return s3()


def upload(folder, url):
    store = open_store(url)
    for file in folder.rglob("*"):
        if file.is_file():
            store.replace(file.relative_to(folder).as_posix(), file.read_bytes())


def test_a_bucket_gives_the_rows_of_a_disk_and_goes_on_where_it_was(bucket, assigned, tiny_turbo, digits, tmp_path):
    pairs, out = assigned
    upload(copy_pairs(digits, tmp_path / "pairs", 24), f"{bucket}/pairs")
    there = f"{bucket}/out"
    job = AssignJob(pairs=f"{bucket}/pairs", model=tiny_turbo, out=there, report=False, **SETTINGS)
    store = open_store(there)
    missing = open_store(f"{bucket}/pairs")
    missing.remove("images/0013.png")
    assert run(job) == 3
    summary = json.loads(store.read("summary.json"))
    assert (summary["assigned"], summary["quarantined_by_reason"]) == (23, {"missing-image": 1})
    missing.replace("images/0013.png", (pairs / "images" / "0013.png").read_bytes())
    # A part that has gone and one that is cut short are made again, the quarantined row when asked for.
    first, _, last = (name for name in store.names() if name.startswith("part-"))
    store.remove(first)
    store.replace(last, store.read(last)[:500])
    assert run(job.model_copy(update={"retry_failures": True, "report": True})) == 0
    assert_same(rows(there), rows(out), loss=0, skew=0)
    # Places are text in it, and no links.
    (tmp_path / "report.html").write_text(store.read("report.html").decode().replace(bucket, "bucket"))
    assert check_source(tmp_path / "report.html") == 3 * (6 + 9 + 9 + 6) + 2
    assert json.loads(store.read("orthogonal_gaussian_final.json"))["maps"] == 24
    with pytest.raises(UserError, match=r"holds the output of another run.*config\.steps was 4, now 5"):
        run(job.model_copy(update={"steps": 5}))

    training = TrainJob(assignments=there, model=tiny_turbo, out=tmp_path / "train", pixel_l1_weight=1.0)
    plan, data = make_plan(training, TrainModels.open(training))
    images = data.pairs
    assert plan.rows == len(data.source) == 24
    (name,) = (row["image"] for row in Assignments(there).rows([13], ["image"]))
    assert isinstance(images, PairSet)
    assert images.fetch_image(name, "a row") == (pairs / name).read_bytes()
    shutil.rmtree(tmp_path / "pairs")
