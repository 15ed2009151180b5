"""What `--heldout` takes, and how the two parts are read."""

from pathlib import Path

import pytest
import yaml

from rayjobs.assign.config import AssignSettings
from rayjobs.cli import main
from rayjobs.em.config import EmJob
from rayjobs.em.steps import baseline_job, train_job
from rayjobs.train.config import TrainSettings
from rayjobs.verb.paths import located, relative_paths


def job(**options) -> EmJob:
    return EmJob(pairs="pairs", model="/m", work_dir="/w", **options)


@pytest.mark.parametrize("given", ["5%", "2.5%", "200", "none", "auto"])
def test_a_share_is_no_path(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = job(heldout=given)
    assert located(one).heldout == one.heldout == given
    assert [option for option, _ in relative_paths(one)] == ["--pairs"]
    assert one.heldout_place == ("pairs" if given[0].isdigit() else None)


def test_a_path_that_exists_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("5%", "200", "none", "auto"):
        Path(name).mkdir()
        one = job(heldout=name)
        assert (one.share, one.heldout_place) == (None, f"./{name}")
        assert located(one).heldout_place == f"{tmp_path}/{name}"
    assert job(heldout="h").share is None


def test_the_parts_are_of_the_same_reading_and_another_place_has_its_own(tmp_path):
    one = job(heldout="5%", split="train", caption="all")
    fields = [one.training_fields(), one.heldout_fields()]
    assert [f.part for f in fields] == ["training:5%", "heldout:5%"]
    assert {(f.split, f.caption) for f in fields} == {("train", "all")}
    other = job(heldout="/h", part="training:5%", split="train", caption="all")
    assert other.training_fields() == other.pair_fields()
    assert (other.heldout_fields().part, other.heldout_fields().split) == (None, None)


def test_a_number_may_be_one_in_a_file_and_a_part_is_checked_at_the_edge(tmp_path, capsys):
    (tmp_path / "job.yaml").write_text("pairs: p\nmodel: /m\nwork_dir: /w\nheldout: 200\n")
    assert main(["em", "--config", f"{tmp_path}/job.yaml", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["heldout"] == "200"
    assert main(["em", "--config", f"{tmp_path}/job.yaml", "--heldout", "none", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["heldout"] == "none"
    assert (job().heldout, job(heldout=None).heldout) == ("auto", "none")
    assert main(["assign", "--pairs", "p", "--model", "/m", "--out", "/w", "--part", "test"]) == 1
    assert "--part: 'test' is not accepted: not a part of a pair set; accepted: training:5%" in capsys.readouterr().err


def test_m_steps_train_on_centred_noise_and_the_baseline_on_noise_that_has_no_mean(tmp_path):
    em = job()
    cycle, direct = train_job(em, tmp_path / "model", tmp_path / "cycle_01"), baseline_job(em)
    assert (cycle.noise, cycle.centers, cycle.preserve_rows, cycle.preserve_file) == ("matched", True, 4, None)
    assert (direct.noise, direct.centers, direct.preserve_rows) == ("random", False, 4)
    direct.check_noise()  # is not refused for what em has by default
    online = job(train={"noise": "online"})
    assert not train_job(online, tmp_path / "model", tmp_path / "cycle_01").centers  # fresh noise has no mean either


def test_settings_of_the_two_verbs_are_settings_of_the_two_steps():
    assign, train = AssignSettings(steps=3, slots=5), TrainSettings(lr=1e-3, preserve_latent_weight=0.25)
    em = job(assign=assign, train=train)
    assert em.assign.model_dump() == assign.model_dump()
    assert em.train.model_dump() == train.model_dump()
