"""What verbs say first of a pair set, and outputs that would become a part of one."""

from pathlib import Path

import pytest
import yaml

from ortho_core.errors import UserError
from rayjobs.assign.config import AssignJob
from rayjobs.cli import main
from rayjobs.em.config import EmJob
from rayjobs.evaluate.config import EvaluateJob
from rayjobs.verb.paths import check_outputs
from tests.ortho_core.pairs.made import write_captions, write_images, write_parquet


@pytest.fixture
def place(tmp_path):
    for name in ("pairs", "model", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "pairs" / "pairs.jsonl").touch()
    (tmp_path / "link").symlink_to(tmp_path / "pairs", target_is_directory=True)
    return tmp_path


@pytest.mark.parametrize("out", ["pairs", "pairs/run", "link/run", "elsewhere/../pairs/run", "model/run"])
def test_an_output_inside_the_pairs_or_the_model_is_refused(place, out):
    common = {"pairs": f"{place}/pairs", "model": place / "model"}
    with pytest.raises(UserError, match=r"--out .* lies in --(pairs|model) .*; choose a folder elsewhere"):
        check_outputs(AssignJob(**common, out=f"{place}/{out}"))
    with pytest.raises(UserError, match="--work-dir"):
        check_outputs(EmJob(**common, work_dir=place / out))
    with pytest.raises(UserError, match="--assignments-cache"):
        check_outputs(EmJob(**common, work_dir=place / "w", assignments_cache=place / out))
    with pytest.raises(UserError, match="--out"):
        check_outputs(EvaluateJob(pairs=f"{place}/pairs", model={"a": place / "model"}, out=place / out))


def test_an_output_elsewhere_is_none_of_their_business(place):
    common = {"model": place / "model"}
    for pairs, out in (("pairs", "pairs-2"), ("pairs", "elsewhere/run"), ("pairs/pairs.jsonl", "pairs/run")):
        check_outputs(AssignJob(**common, pairs=f"{place}/{pairs}", out=f"{place}/{out}"))
    check_outputs(AssignJob(**common, pairs="s3://bucket/pairs", out="s3://bucket/pairs-2"))
    with pytest.raises(UserError, match="--out"):
        check_outputs(AssignJob(**common, pairs="s3://bucket/pairs/", out="s3://bucket/pairs/run"))


def test_the_command_refuses_it_before_any_work(place, capsys):
    where = ["--pairs", f"{place}/pairs", "--model", f"{place}/model", "--out", f"{place}/pairs/run"]
    assert main(["assign", *where]) == 1
    assert "ortho assign: --out" in capsys.readouterr().err
    assert not Path(place, "pairs", "run").exists()


def test_a_dry_run_says_first_what_was_recognised_and_has_it(tmp_path, tiny_turbo, capsys):
    write_captions(tmp_path / "set", {f"5_x/{i}.png": f"caption {i}" for i in range(8)})
    write_images(tmp_path / "set", "masks/0.png")
    code = main(
        [
            "evaluate",
            "--pairs",
            f"{tmp_path}/set",
            "--model",
            str(tiny_turbo),
            "--out",
            f"{tmp_path}/o",
            "--rows",
            "8",
            "--dry-run",
        ]
    )
    said = capsys.readouterr()
    assert code == 0
    assert said.err.splitlines()[0] == (
        "held-out pairs: images with caption files, in 1 folder: 8 images; captions from .txt beside each image; the repeats of "
        "5_x are not applied, each image is one row; left aside: 1 image in masks/ (masks or conditions)"
    )
    assert yaml.safe_load(said.out)["recognised"]["left_aside"] == ["1 image in masks/ (masks or conditions)"]


def test_a_split_is_of_the_pairs_and_not_of_the_held_out_ones(tmp_path):
    write_parquet(tmp_path / "train.parquet", text=["x"], image=[b"x"])
    job = EmJob(
        pairs=str(tmp_path),
        heldout=f"{tmp_path}/test",
        model=tmp_path,
        work_dir=tmp_path / "w",
        split="train",
        caption="all",
    )
    assert (job.pair_fields().split, job.heldout_fields().split, job.heldout_fields().caption) == ("train", None, "all")
