"""Long verbs on a disk that fails: one line, and the same command completes with the result of an undisturbed run."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ortho_core.evaluation.features import TINY_CLIP
from rayjobs.assign.config import AssignSettings
from rayjobs.cli import main
from rayjobs.em.config import EmJob
from rayjobs.evaluate.config import EvaluateJob, EvaluateSettings
from rayjobs.reward.config import RewardJob
from rayjobs.sweep.config import SweepAssignSettings, SweepEvaluateSettings, SweepJob, SweepTrainSettings
from rayjobs.train.config import TrainSettings
from rayjobs.verb.options import as_yaml
from tests.conftest import ROOT, copy_pairs
from tests.disk import last_line
from tests.rayjobs.train.training import assert_same_lines, assert_same_weights, history
from tests.rayjobs.train.training import job as train_job

pytestmark = pytest.mark.usefixtures("ray_session")
UNSET = Path("unset")
TRAIN = {"epochs": 1, "batch_size": 4, "cpus_per_worker": 0.5, "tensorboard": False, "checkpoint_every": 1}
EVALUATE = {"rows": 8, "steps": 1, "cpus_per_worker": 0.5}
ASSIGN = {"steps": 1, "rows_per_shard": 6, "cpus_per_worker": 0.5}
HERE = {
    "assign": AssignSettings(workers="0", **ASSIGN),
    "train": TrainSettings(num_workers=0, **TRAIN),
    "evaluate": EvaluateSettings(workers="0", **EVALUATE),
}
OF_TRIALS = {
    "assign": SweepAssignSettings(**ASSIGN),
    "train": SweepTrainSettings(**TRAIN),
    "evaluate": SweepEvaluateSettings(**EVALUATE),
}
RESULTS = {"evaluate": "evaluation.json", "em": "em_summary.json", "sweep": "sweep_summary.json"}
#: What depends on the clock, the folder, or how often a command was run.
TIMES = {
    "seconds_this_run",
    "rows_this_run",
    "rows_per_second",
    "images_per_second",
    "train_seconds",
    "seconds",
    "made_at",
}
PASSING = TIMES | {"files", "out", "work_dir", "model", "assignments", "report", "command"}


class Long:
    """A verb's configuration without its folder, and what of its result must be the same after a fault."""

    def __init__(self, verb: str, job: Any) -> None:
        self.verb, self.job = verb, job
        self.folder = "work_dir" if hasattr(job, "work_dir") else "out"

    def write_config(self, file: Path, out: Path) -> Path:
        kind = str if self.verb == "reward" else Path
        file.write_text(as_yaml(self.job.model_copy(update={self.folder: kind(out)})))
        return file

    def run(self, out: Path) -> int:
        return main([self.verb, "--config", str(self.write_config(out.with_name("job.yaml"), out))])

    def assert_same(self, out: Path, other: Path) -> None:
        if self.verb == "train":
            assert_same_lines(history(out), history(other), 1e-5)
            assert len(history(out)) == len(history(other))
            assert_same_weights(out / "checkpoint-final", other / "checkpoint-final", 1e-4)
        elif self.verb == "reward":
            assert without(rows(out)) == without(rows(other))
        else:
            ours, theirs = (json.loads((folder / RESULTS[self.verb]).read_text()) for folder in (out, other))
            assert_close(without(ours), without(theirs))
        assert not [name for name in out.rglob(".*") if name.suffix in {".partial", ".old", ".tmp"}]


def rows(out: Path) -> list[Any]:
    return [row for part in sorted(out.glob("part-*")) for row in pq.read_table(part).to_pylist()]


def without(result: Any) -> Any:
    if isinstance(result, dict):
        return {name: without(value) for name, value in result.items() if name not in PASSING}
    return [without(value) for value in result] if isinstance(result, list) else result


def assert_close(ours: Any, theirs: Any) -> None:
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert_close(value, theirs[name])
    elif isinstance(ours, list):
        for value, other in zip(ours, theirs, strict=True):
            assert_close(value, other)
    else:
        assert ours == (pytest.approx(theirs, rel=1e-3, abs=1e-5) if isinstance(ours, float) else theirs)


@pytest.fixture(scope="module")
def verbs(assigned, tiny_turbo, digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("verbs")
    pairs = copy_pairs(digits, folder / "pairs", 12)
    heldout = copy_pairs(digits, folder / "heldout", 8)
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"a red {name}"}) + "\n" for name in ("two", "four", "nine")))
    em = {"model": tiny_turbo, "heldout": str(heldout), "pairs": str(pairs), "baseline": False, "work_dir": UNSET}
    reward = {"reward": "clip", "reward_folders": {"clip": TINY_CLIP}, "steps": 2, "rows_per_shard": 1, "workers": "0"}
    judged = {"model": {"base": tiny_turbo}, "pairs": str(heldout), "workers": "0", "rows_per_shard": 4}
    jobs = [
        Long("train", train_job(assigned, tiny_turbo, UNSET, **TRAIN | {"tensorboard": True})),
        Long("evaluate", EvaluateJob(out=UNSET, **judged, **EVALUATE)),
        Long("reward", RewardJob(model=tiny_turbo, prompts=str(prompts), out="unset", **reward)),
        Long("em", EmJob(**em, cycles=1, **HERE)),
        Long("sweep", SweepJob(**em, sweep={"train.lr": "1e-4,1e-3"}, **OF_TRIALS)),
    ]
    return {job.verb: job for job in jobs}


@pytest.fixture(scope="module")
def undisturbed(verbs, tmp_path_factory):
    """The folder of a run without faults, made when it is first asked for."""
    made: dict[str, Path] = {}

    def of(verb: str) -> Path:
        if verb not in made:
            made[verb] = tmp_path_factory.mktemp("undisturbed") / verb
            assert verbs[verb].run(made[verb]) == 0
        return made[verb]

    return of


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, pytest.param(errno.EIO, marks=pytest.mark.slow)], ids=["full", "broken"]
)
@pytest.mark.parametrize(
    "verb", ["evaluate", "reward", *(pytest.param(verb, marks=pytest.mark.slow) for verb in ("train", "em", "sweep"))]
)
def test_wherever_writing_fails_it_is_one_line_and_the_same_command_goes_on(
    verb, code, verbs, undisturbed, disk, capsys, tmp_path, monkeypatch
):
    """The first write fails, then the fifth after it, the seventeenth and so on, in one folder, until all are done."""
    expected = undisturbed(verb)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    out, left, ended, failures = tmp_path / "out", 0, 1, 0
    while ended:
        disk.folder, disk.code, disk.left, disk.failed = str(out), code, left, ""
        capsys.readouterr()
        try:
            ended = verbs[verb].run(out)
        finally:
            disk.folder = ""
        said = capsys.readouterr().err
        if ended:
            left, failures = max(4, 4 * left), failures + 1
            assert disk.failed, said
            assert ended == 1, said
            line = last_line(verb, said)
            assert os.strerror(code) in line
            assert str(tmp_path) in line
    assert failures >= 2
    verbs[verb].assert_same(out, expected)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["train", "evaluate", "reward", "em", "sweep"])
@pytest.mark.parametrize("share", [0.2, 0.8])
def test_on_a_disk_that_is_really_full_it_is_one_line_and_with_more_room_it_goes_on(
    share, verb, verbs, undisturbed, tmp_path
):
    """All processes write to a disk with a share of the bytes that the run leaves, PyTorch's and Arrow's writers too."""
    if subprocess.run(["unshare", "-rm", "true"], check=False).returncode != 0:
        pytest.skip("needs a mount of its own")
    expected, place, kept = undisturbed(verb), tmp_path / "disk", tmp_path / "kept"
    place.mkdir()
    room = int(share * sum(file.stat().st_size for file in expected.rglob("*") if file.is_file()))
    config = verbs[verb].write_config(tmp_path / "job.yaml", place / "out")
    command = f"{sys.executable} -m rayjobs {verb} --local --config {config}"
    script = (
        f"mount -t tmpfs -o size={room} none {place}; {command}; echo ended $? >&2; "
        f"mount -o remount,size=4g {place}; {command}; echo ended $? >&2; cp -r {place}/out {kept}"
    )
    own = {"PYTHONPATH": str(ROOT), "TMPDIR": os.environ["HOME"]}
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script], env={**os.environ, **own}, capture_output=True, text=True, check=False
    )
    first, separator, second = done.stderr.partition("ended 1\n")
    assert separator, done.stderr
    assert os.strerror(errno.ENOSPC) in last_line(verb, first)
    assert second.endswith("ended 0\n"), second
    verbs[verb].assert_same(kept, expected)
