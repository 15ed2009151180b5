"""What the trackers' own readers find of a run, also of one that was killed and resumed, and of one that lost a server."""

import importlib.util
import logging
import math
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from ortho_core.errors import UserError
from rayjobs.training.config import TrackerSettings
from rayjobs.training.trackers import Trackers, check
from rayjobs.verb.paths import located

RUN = "0123456789abcdef"
CONFIG = {"lr": 1e-4, "train": {"preserve": {"weight": 0.5}, "layers": ["a", "b"]}, "note": "x" * 7000}
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Nothing of whoever runs the tests; W&B stays on this machine."""
    for name in ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_URI", "WANDB_DIR", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()  # it reads its variables once


def settings(**given) -> TrackerSettings:
    return TrackerSettings(**{"tensorboard": False, **given})


def killed_and_resumed(given: TrackerSettings, out: Path) -> None:
    """Updates 5, 10 and 15; a kill after the state of update 10 was saved; then on to 20."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)
    killed = Trackers(given, out, "my run", CONFIG, RUN, 0)
    for update in (5, 10, 15):
        killed.log(update, {"train/loss": 1 / update, "validation/drift": math.nan if update == 10 else 0.25})
        killed.image(update, "validation/samples", pixels)
    if given.wandb:
        killed._close(finished=False)  # one process may not have two of a run
    else:
        for lane in killed._lanes:  # all was handed on, and nothing says that the run ended
            lane.thread.shutdown()
    time.sleep(
        1.1
    )  # W&B's folders and TensorBoard's files are named after the second, and read in the order of their names
    with Trackers(given, out, "my run", {**CONFIG, "lr": 2e-4}, RUN, 10) as trackers:
        for update in (15, 20):
            trackers.log(update, {"train/loss": 1 / update, "validation/drift": math.inf})
            trackers.image(update, "validation/samples", pixels)


def test_tensorboard_shows_each_update_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    killed_and_resumed(settings(tensorboard=True), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = events.Scalars("train/loss")
    assert [p.step for p in points] == [5, 10, 15, 20]
    np.testing.assert_allclose([p.value for p in points], [1 / 5, 1 / 10, 1 / 15, 1 / 20], rtol=1e-6)
    drift = [p.value for p in events.Scalars("validation/drift")]
    assert drift[0] == 0.25
    assert math.isnan(drift[1])
    assert drift[2:] == [math.inf, math.inf]
    pictures = events.Images("validation/samples")
    assert [p.step for p in pictures] == [5, 10, 15, 20]
    assert (pictures[0].height, pictures[0].width) == (8, 12)
    (text,) = events.Tensors("config/text_summary")
    assert b"preserve" in text.tensor_proto.string_val[0]


def test_tensorboard_starts_over_without_a_checkpoint(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for run in range(2):
        time.sleep(1.1 * run)  # files of one second are read in the order of a counter's digits, 10 before 9
        with Trackers(settings(tensorboard=True), tmp_path, "my run", CONFIG, RUN, 0) as trackers:
            trackers.log(5, {"train/loss": 1.0})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [p.step for p in events.Scalars("train/loss")] == [5]


def test_mlflow_goes_on_in_the_same_run(tmp_path, capfd):
    mlflow = pytest.importorskip("mlflow")
    store = tmp_path / "store"
    killed_and_resumed(settings(mlflow=str(store)), tmp_path)
    assert capfd.readouterr() == ("", "")
    client = mlflow.MlflowClient(tracking_uri=str(store))
    (run,) = client.search_runs([client.get_experiment_by_name("ortho").experiment_id])
    assert (run.info.run_name, run.info.status) == ("my run", "FINISHED")
    # a parameter stays as it was first
    assert run.data.params == {
        "lr": "0.0001",
        "train.preserve.weight": "0.5",
        "train.layers": '["a", "b"]',
        "note": "x" * 6000,
    }
    points = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(p.step, p.value) for p in points] == [(u, 1 / u) for u in (5, 10, 15, 20)]
    drift = [p.value for p in client.get_metric_history(run.info.run_id, "validation/drift")]
    assert math.isnan(drift[1])
    assert drift[3] == math.inf
    pictures = [f.path for f in client.list_artifacts(run.info.run_id, "images") if f.path.endswith(".png")]
    assert sorted(int(p.split("+step+")[1].split("+")[0]) for p in pictures) == [5, 10, 15, 20]


def test_mlflow_is_told_that_a_run_failed(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    store = str(tmp_path / "store")
    with (
        pytest.raises(ZeroDivisionError),
        Trackers(settings(mlflow=store), tmp_path, "my run", {}, RUN, 0) as trackers,
    ):
        trackers.log(1, {"train/loss": 1 / 0})
    client = mlflow.MlflowClient(tracking_uri=store)
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert run.info.status == "FAILED"


def test_pictures_that_fail_do_not_cost_the_figures(tmp_path, caplog):
    mlflow = pytest.importorskip("mlflow")
    given = settings(mlflow=str(tmp_path / "store"))
    Trackers(given, tmp_path, "my run", CONFIG, RUN, 0).close()
    client = mlflow.MlflowClient(tracking_uri=given.mlflow)
    (run,) = client.search_runs([client.get_experiment_by_name("ortho").experiment_id])
    (Path(run.info.artifact_uri.removeprefix("file://")) / "images").write_text("in the way")
    with Trackers(given, tmp_path, "my run", CONFIG, RUN, 0) as trackers:
        for update in (1, 2):
            trackers.image(update, "samples", np.zeros((8, 8, 3), np.uint8))
            trackers.log(update, {"train/loss": 1.0})
    assert [p.step for p in client.get_metric_history(run.info.run_id, "train/loss")] == [1, 2]
    (warning,) = caplog.messages
    assert warning.startswith("MLflow: ")
    assert warning.endswith("its pictures are left out of the rest of this run")


def history(file: Path) -> list[dict[str, str]]:
    """The logged points in W&B's file: records in frames of check sum, length and kind, after seven bytes of header."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, points = file.read_bytes(), 7, []
    assert len(content) < 32768  # a longer one has frames in pieces
    while at < len(content):
        _, length, _ = struct.unpack("<IHB", content[at : at + 7])
        record = Record.FromString(content[at + 7 : at + 7 + length])
        at += 7 + length
        if record.HasField("history"):
            points.append({i.key or "/".join(i.nested_key): i.value_json for i in record.history.item})
    return points


def test_wandb_goes_on_under_the_same_id(tmp_path, capfd):
    pytest.importorskip("wandb")
    killed_and_resumed(settings(wandb="team/digits"), tmp_path)
    assert capfd.readouterr() == ("", "")
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*-{RUN}/run-{RUN}.wandb"))
    assert len(files) == 2
    points = [point for file in files for point in history(file)]
    assert {int(p["_step"]): float(p["train/loss"]) for p in points} == {u: 1 / u for u in (5, 10, 15, 20)}
    assert all(any(key.startswith("validation/samples") for key in p) for p in points)
    assert len(list((tmp_path / "wandb").glob("offline-run-*/files/media/images/validation/samples_*.png"))) == 5


def test_a_lost_tracker_is_told_once_and_the_others_go_on(tmp_path, monkeypatch, caplog):
    pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("WANDB_MODE", "online")  # without a key
    with caplog.at_level(logging.WARNING, "rayjobs.training.trackers"):
        trackers = Trackers(
            TrackerSettings(mlflow=NOWHERE, wandb="digits"), tmp_path, "my run", CONFIG, RUN, resumed_at=0
        )
        for update in range(1, 4):
            trackers.log(update, {"train/loss": 1.0})
            trackers.image(update, "samples", np.zeros((8, 8, 3), np.uint8))
        trackers.close()
        trackers.close()
    mine = sorted(r.getMessage() for r in caplog.records if r.name == "rayjobs.training.trackers")
    assert sorted(trackers.warnings) == mine
    assert [m.split(":")[0] for m in mine] == ["MLflow", "Weights & Biases"]
    assert NOWHERE in mine[0]
    assert mine[0].endswith("it is left out of this run")
    assert not [r for r in caplog.records if r.name.startswith("urllib3") and r.levelno >= logging.WARNING]
    assert "API key" in mine[1]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [p.step for p in events.Scalars("train/loss")] == [1, 2, 3]


def test_nothing_asked_for_is_nothing_done(tmp_path):
    with Trackers(settings(), tmp_path, "my run", CONFIG, RUN, 0) as trackers:
        trackers.log(1, {"train/loss": 1.0})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "missing", "message"),
    [
        ({"mlflow": NOWHERE}, "mlflow", r"--mlflow http\S+: the package mlflow .* pip install 'ortho-em\[mlflow\]'"),
        ({"wandb": "digits"}, "wandb", r"--wandb digits: the package wandb .* pip install 'ortho-em\[wandb\]'"),
        ({"tensorboard": True}, "tensorboard", "the package tensorboard .* or --tensorboard false"),
        ({"mlflow": "sqlite:///a.db"}, "sqlalchemy", "sqlite needs the full package, pip install mlflow; accepted"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, given, missing, message):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(UserError, match=message) as raised:
        check(settings(**given))
    assert "\n" not in str(raised.value)
    check(settings())


def test_settings_are_ready_to_travel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert located(settings(mlflow="runs/mlflow")).mlflow == str(tmp_path / "runs/mlflow")
    for uri in (NOWHERE, "sqlite:////data/mlflow.db", "databricks", "file:///data"):
        assert located(settings(mlflow=uri)).mlflow == uri
    with pytest.raises(ValidationError, match="accepted: PROJECT or ENTITY/PROJECT"):
        settings(wandb="a/b/c")
