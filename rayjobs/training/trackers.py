"""The trackers of a training run's figures and pictures: TensorBoard, MLflow, Weights & Biases.

Each client runs in its own thread, so that a slow server does not delay training. A tracker that fails is reported once and not
used again in this run. Clients are imported only when they are needed.
"""

import importlib.util
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from ortho_core.errors import UserError, install
from ortho_core.records.plan import Settings
from rayjobs.training.config import TrackerSettings

logger = logging.getLogger(__name__)

#: Environment variables for the clients; a variable that is set already is not changed.
ENVIRONMENT = {
    # The client gives up a server without answer after 1.5 minutes instead of 15.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    # MLflow refuses folders by default; here the user has named one.
    "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
}
#: The tag by which a resumed run is found in MLflow, and the longest key and value that MLflow accepts.
RUN_TAG, LONGEST_KEY, LONGEST_VALUE = "ortho_run", 250, 6000
PARAMS_PER_CALL = 100


def check(settings: TrackerSettings) -> None:
    """Raises UserError for a tracker whose package is not installed."""
    if settings.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "--tensorboard: the package tensorboard is not installed; pip install tensorboard, or --tensorboard false"
        )
    for package, value in (("mlflow", settings.mlflow), ("wandb", settings.wandb)):
        if value is not None and importlib.util.find_spec(package) is None:
            raise UserError(f"--{package} {value}: the package {package} is not installed; {install(package)}")
    database = re.match(r"(sqlite|mysql|postgresql|mssql)\b", settings.mlflow or "")
    if database and importlib.util.find_spec("sqlalchemy") is None:
        raise UserError(
            f"--mlflow {settings.mlflow}: {database[1]} needs the full package, pip install mlflow; "
            "accepted without it: the http(s) address of a server, or a folder"
        )


class Trackers:
    """All trackers of a run as one. No method raises, and only `close` waits for a server."""

    def __init__(
        self, settings: TrackerSettings, out: Path, name: str, config: Settings, run_id: str, resumed_at: int
    ) -> None:
        """`run_id` (16 hex digits) identifies the run: with the same one, MLflow and W&B continue the same run.

        Updates after `resumed_at` are logged again; no tracker shows them twice.
        """
        for variable, value in ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        #: The warnings so far, which the caller puts into the summary.
        self.warnings: list[str] = []
        self._lanes: list[_Lane] = []
        if settings.tensorboard:
            self._add("TensorBoard", lambda: _TensorBoard(out / "tensorboard", config, resumed_at))
        if (uri := settings.mlflow) is not None:
            self._add("MLflow", lambda: _MLflow(uri, name, config, run_id))
        if (project := settings.wandb) is not None:
            self._add("Weights & Biases", lambda: _WandB(project, out, name, config, run_id))

    def _add(self, label: str, start: Callable[[], "_Tracker"]) -> None:
        self._lanes.append(_Lane(label, start, self.warnings))

    def log(self, update: int, values: Mapping[str, float]) -> None:
        """Log figures of one update, named like `train/loss`. Updates must not decrease."""
        figures = {key: float(value) for key, value in values.items()}
        for lane in self._lanes:
            lane.put("log", update, figures)

    def image(self, update: int, name: str, pixels: np.ndarray) -> None:
        """Log one picture (Y, X, 3), uint8."""
        copy = pixels.copy()
        for lane in self._lanes:
            lane.put("image", update, name, copy)

    def close(self) -> None:
        """Wait until everything is sent, and mark the run as finished."""
        self._close(True)

    def _close(self, finished: bool) -> None:
        lanes, self._lanes = self._lanes, []
        for lane in lanes:
            lane.put("close", finished)
        for lane in lanes:
            lane.thread.shutdown()

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(kind is None)


class _Tracker(Protocol):
    """A client, called on the thread of its lane."""

    def log(self, update: int, figures: dict[str, float]) -> None: ...

    def image(self, update: int, name: str, pixels: np.ndarray) -> None: ...

    def close(self, finished: bool) -> None: ...


class _Lane:
    """One tracker in its own thread."""

    def __init__(self, label: str, start: Callable[[], "_Tracker"], warnings: list[str]) -> None:
        self.label, self.warnings = label, warnings
        self.thread = ThreadPoolExecutor(1, thread_name_prefix=label)
        self.tracker: _Tracker | None = None
        #: Methods of the tracker that have failed and are not called again.
        self.lost: set[str] = set()
        self.thread.submit(self._start, start)

    def put(self, verb: str, *values: object) -> None:
        self.thread.submit(self._do, verb, values)

    def _start(self, start: Callable[[], "_Tracker"]) -> None:
        try:
            self.tracker = start()
        except Exception as error:
            self._warn(error, "it is left out of this run")

    def _do(self, verb: str, values: tuple[object, ...]) -> None:
        if self.tracker is None or verb in self.lost:
            return
        try:
            getattr(self.tracker, verb)(*values)
        except Exception as error:
            # Pictures may fail without figures: MLflow, for example, sends them to an artifact store.
            self.lost |= {"image"} if verb == "image" else {"log", "image", "close"}
            subject = "its pictures are" if verb == "image" else "it is"
            self._warn(error, f"{subject} left out of the rest of this run")

    def _warn(self, error: Exception, consequence: str) -> None:
        first = (str(error).splitlines() or [""])[0][:500]
        self.warnings.append(f"{self.label}: {type(error).__name__}: {first}; {consequence}")
        logger.warning("%s", self.warnings[-1])


class _TensorBoard:
    def __init__(self, folder: Path, config: Settings, resumed_at: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        first = not any(folder.glob("events.*"))
        self.writer = SummaryWriter(str(folder), purge_step=resumed_at + 1)
        if first:
            text = json.dumps(config, indent=1).replace(
                "\n", "\n    "
            )  # indented by four spaces: a code block in Markdown
            self.writer.add_text("config", "    " + text, 0)

    def log(self, update: int, figures: dict[str, float]) -> None:
        for key, value in figures.items():
            self.writer.add_scalar(key, value, update)
        self.writer.flush()  # otherwise a kill loses up to two minutes of updates that are in a saved state

    def image(self, update: int, name: str, pixels: np.ndarray) -> None:
        self.writer.add_image(name, pixels, update, dataformats="HWC")
        self.writer.flush()

    def close(self, finished: bool) -> None:
        self.writer.close()


class _MLflow:
    """A resumed run is found by its tag. MLflow keeps duplicate points, so points that it has are not sent again."""

    def __init__(self, uri: str, name: str, config: Settings, run_id: str) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        logging.getLogger("urllib3.connectionpool").setLevel(
            logging.ERROR
        )  # otherwise it prints a line for every retry
        self.metric = Metric
        self.client = MlflowClient(tracking_uri=uri)
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or "ortho")
        found = self.client.search_runs([experiment], f"tags.{RUN_TAG} = '{run_id}'", max_results=1)
        run = found[0] if found else self.client.create_run(experiment, tags={RUN_TAG: run_id}, run_name=name)
        self.run, self.again = run.info.run_id, bool(found)
        if self.again:
            self.client.update_run(self.run, status="RUNNING")
        #: The last update of each figure in the MLflow run, and the pictures in it; both are read when first needed.
        self.last: dict[str, int] = {}
        self.pictures: set[str] | None = None
        # MLflow refuses to change a parameter. A resumed run differs only in options that do not change the result.
        params = [Param(k, v) for k, v in _flat(config) if k not in run.data.params]
        for first in range(0, len(params), PARAMS_PER_CALL):
            self.client.log_batch(self.run, params=params[first : first + PARAMS_PER_CALL])

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name))
            except Exception:
                found = self.client.get_experiment_by_name(name)  # another run has made it in the meantime
                if found is None:
                    raise
        return str(found.experiment_id)

    def _last(self, key: str) -> int:
        if key not in self.last:
            points = self.client.get_metric_history(self.run, key) if self.again else []
            self.last[key] = max((point.step for point in points), default=-1)
        return self.last[key]

    def log(self, update: int, figures: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        named = {_mlflow_key(key): value for key, value in figures.items()}
        metrics = [self.metric(key, value, now, update) for key, value in named.items() if update > self._last(key)]
        if metrics:
            self.client.log_batch(self.run, metrics=metrics)

    def image(self, update: int, name: str, pixels: np.ndarray) -> None:
        if self.pictures is None:
            files = self.client.list_artifacts(self.run, "images") if self.again else []
            self.pictures = {file.path.split("+timestamp")[0] for file in files}
        key = _mlflow_key(name).replace(":", "_")
        if f"images/{key.replace('/', '~')}+step+{update}" not in self.pictures:
            self.client.log_image(self.run, pixels, key=key, step=update)

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.run, "FINISHED" if finished else "FAILED")


class _WandB:
    """W&B ignores points before the last step of a run, so a resumed run has no duplicate points."""

    def __init__(self, project: str, out: Path, name: str, config: Settings, run_id: str) -> None:
        import wandb

        self.picture, self.teardown = wandb.Image, wandb.teardown
        quiet = {"silent": True, "console": "off", "x_disable_stats": True}
        private = {"disable_git": True, "disable_code": True, "save_code": False, "x_save_requirements": False}
        private |= {"x_disable_meta": True, "x_disable_machine_info": True}
        # Without a limit, `finish` would wait for ever for a lost server. The files stay under OUT/wandb, for `wandb sync`.
        waits = {"init_timeout": 60, "login_timeout": 30, "finish_timeout": 120}
        wanted = {**quiet, **private, **waits, "reinit": "create_new"}
        known = {
            k: v for k, v in wanted.items() if k in wandb.Settings.model_fields
        }  # the settings differ between releases
        entity, _, project = project.rpartition("/")
        self.run = wandb.init(
            entity=entity or None,
            project=project,
            name=name,
            id=run_id,
            resume="allow",
            config=config,
            dir=os.environ.get("WANDB_DIR") or str(out),
            settings=wandb.Settings(**known),
        )

    def log(self, update: int, figures: dict[str, float]) -> None:
        self.run.log(figures, step=update)

    def image(self, update: int, name: str, pixels: np.ndarray) -> None:
        self.run.log({name: self.picture(pixels)}, step=update)

    def close(self, finished: bool) -> None:
        offline = self.run.offline
        self.run.finish(exit_code=0 if finished else 1)
        if offline:
            # `finish` returns while W&B's own process still writes the run's file; this waits for it. Offline, the wait is short.
            self.teardown()


def _mlflow_key(name: str) -> str:
    return re.sub(r"[^\w\-. /:]", "_", name, flags=re.ASCII)[:LONGEST_KEY]


def _flat(config: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every leaf of a nested configuration as MLflow accepts it: dotted name and text."""
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            yield _mlflow_key(f"{prefix}{name}"), text[:LONGEST_VALUE]
