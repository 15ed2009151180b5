"""`ortho submit`: what it refuses and sends, and how it goes on a real cluster that asks for its token."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rayjobs.cli import main
from tests.conftest import ROOT, copy_pairs
from tests.head import one_machine, short_folder

EM = ["em", "--pairs", "/p", "--model", "/m", "--work-dir", "/w"]
QUICK = ["verify-noise", "--size", "16", "--num-samples", "8", "--patch-size", "4", "--out"]


@pytest.fixture(scope="module")
def head():
    with short_folder() as folder, one_machine(folder, cpus=2) as head:
        yield head


def dry(capsys, *argv):
    assert main(["submit", "--dry-run", *argv]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_what_would_be_sent_is_the_code_and_the_named_files_and_no_value_of_the_environment(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SECRET_KEY", "hush")
    Path("mine.yaml").write_text("pairs: s3://bucket/pairs\nmodel: /m\nwork_dir: /w\n")
    Path("prompts.txt").write_text("a red cat\n")
    plain = dry(capsys, *EM)
    assert plain["entrypoint"] == "python -m rayjobs " + " ".join(EM)
    assert plain["own_files"] == []
    assert 2e6 < plain["bytes_sent"] < 5e6
    for config in (["--config", "mine.yaml"], ["--config=mine.yaml"]):
        said = dry(
            capsys, "--env", "SECRET_KEY", "em", *config, "--train.preserve-prompts", "prompts.txt", "--assign.steps=3"
        )
        assert said["own_files"] == ["job.yaml", "prompts.txt"]
        assert said["files_sent"] == plain["files_sent"] + 2
        assert said["entrypoint"].replace("=job", " job") == (
            "python -m rayjobs em --config job.yaml --train.preserve-prompts prompts.txt --assign.steps=3"
        )
        assert said["env"] == ["SECRET_KEY"]
        assert "hush" not in str(said)
    theirs = ["--work-dir", "~/w", "--heldout", "$NOT_SET_ANYWHERE/h", "--evaluate.lpips", "${NOT_SET_ANYWHERE}.pth"]
    assert dry(capsys, *EM, *theirs)["own_files"] == []
    for share in ("5%", "200", "none"):
        assert dry(capsys, *EM, "--heldout", share)["entrypoint"].endswith(f"--heldout {share}")
    bare = dry(capsys, "--no-upload", "--metadata", "team=a", "em", "--config", "/etc/of-the-image.yaml")
    assert (bare["files_sent"], bare["metadata"]) == (0, {"team": "a"})
    assert bare["entrypoint"] == "python -m rayjobs em --config /etc/of-the-image.yaml"


def test_faults_are_found_before_anything_is_sent(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").touch()
    Path("big.txt").write_bytes(bytes(2 << 20))
    Path("job.yaml").touch()
    Path("mine.yaml").write_text("work_dir: /w\n")
    for argv, message in [
        ([], "no verb is given"),
        (["emm"], "unknown verb 'emm'; accepted: assign"),
        (["submit", *EM], "unknown verb 'submit'"),
        ([*EM, "--assign.step", "3"], "did you mean --assign.steps?"),
        ([*EM, "--assign.steps", "many"], "--assign.steps: 'many' is not accepted"),
        (["--adress", "x", *EM], "did you mean --address?"),
        (["--env", "NOT_SET_ANYWHERE", *EM], "--env: NOT_SET_ANYWHERE is not set here"),
        (["--submission-id", "a b", *EM], "--submission-id: 'a b' is not accepted"),
        ([*EM, "--work-dir", "runs/x"], "--work-dir runs/x: a relative path would lie in the job's folder"),
        ([*EM, "--pairs", "pairs.jsonl"], "--pairs pairs.jsonl: a relative path"),
        (
            [*EM, "--train.preserve-prompts", "big.txt"],
            "big.txt has 2097152 bytes; files of up to 1048576 are uploaded",
        ),
        ([*EM, "--config", "mine.yaml", "--train.preserve-prompts", "job.yaml"], "is uploaded under this name"),
        ([*EM, "--local"], "--local: submit runs the verb on the cluster of --address"),
        ([*EM, "--config", "nowhere.yaml"], "--config nowhere.yaml: No such file or directory"),
        (["--no-upload", *EM, "--heldout", "h"], "--heldout h: a relative path"),
        ([*EM, "--evaluate.features", "dino"], "--evaluate.features dino: a relative path"),
        ([*EM, "--heldout", ""], "--heldout: an empty path is not accepted"),
        (["--address", "http://127.0.0.1:9", *EM], "no cluster answers at http://127.0.0.1:9"),
    ]:
        assert main(["submit", *argv]) == 1
        error = capsys.readouterr().err
        assert error.startswith("ortho submit: ")
        assert message in error
        assert error.count("\n") == 1


def test_a_verb_runs_on_the_cluster_with_the_token_and_is_refused_without(head, tmp_path):
    refused = head.run("ortho", "submit", *QUICK, str(tmp_path / "out"), token=False)
    assert refused.returncode == 1
    assert "accepts jobs with its token only" in refused.stderr
    assert refused.stderr.count("\n") == 1
    done = head.run("ortho", "submit", "--metadata", "team=a", *QUICK, str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": Gaussian") >= 2
    assert (tmp_path / "out" / "verify_noise.json").is_file()


@pytest.mark.slow
def test_the_exit_code_is_the_verbs_own_and_values_of_the_environment_arrive(head, tiny_turbo, digits, tmp_path):
    pairs = copy_pairs(digits, tmp_path / "pairs", 24)
    (pairs / "images" / "0003.png").unlink()
    config = {"pairs": str(pairs), "model": str(tiny_turbo), "out": str(tmp_path / "out"), "steps": 2}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config))
    verb = ["assign", "--config", str(tmp_path / "mine.yaml"), "--rows-per-shard", "8"]
    done = head.run("ortho", "submit", "--submission-id", "mine", *verb)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "1 quarantined" in done.stdout
    twice = head.run("ortho", "submit", "--submission-id", "mine", *verb)
    assert twice.returncode == 1
    assert twice.stderr.startswith("ortho submit: the cluster refused the job: ")
    assert "mine already exists" in twice.stderr
    other = head.run("ortho", "submit", *verb, "--steps", "3")
    assert other.returncode == 1
    assert "ortho assign: " in other.stdout
    assert "steps" in other.stdout


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["assign", "cli assign"])
def test_ray_job_submit_runs_a_verb_from_the_checkout(head, verb, tiny_turbo, digits, tmp_path):
    pairs = copy_pairs(digits, tmp_path / "pairs", 24)
    options = ["--pairs", str(pairs), "--model", str(tiny_turbo), "--out", str(tmp_path / "out"), "--steps", "2"]
    module = f"rayjobs.{verb}".split()
    done = head.run("ray", "job", "submit", "--working-dir", ".", "--", "python", "-m", *module, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["assigned"] == 24


class Terminal:
    """A command at a terminal: what it shows, and keys for it."""

    def __init__(self, head, *command) -> None:
        self.keys, theirs = pty.openpty()
        program = str(Path(sys.executable).parent / command[0])
        self.process = subprocess.Popen(
            [program, *command[1:]], cwd=ROOT, env=head.client(), stdin=theirs, stdout=theirs, stderr=theirs,
            preexec_fn=lambda: os.login_tty(0),
        )  # fmt: skip
        os.close(theirs)
        self.shown = ""

    def wait_for(self, text: str) -> None:
        while text not in self.shown:
            try:
                self.shown += os.read(self.keys, 4096).decode()
            except OSError as error:
                raise AssertionError(self.shown) from error

    def type(self, keys: str) -> None:
        os.write(self.keys, keys.encode())

    def end(self) -> int:
        """Read to the end; returns the exit code."""
        try:
            while chunk := os.read(self.keys, 4096):
                self.shown += chunk.decode()
        except OSError:
            pass
        os.close(self.keys)
        return self.process.wait()


@pytest.mark.slow
def test_ctrl_c_asks_and_the_job_is_stopped_or_left_to_itself(head, tiny_turbo, digits, tmp_path):
    pairs = copy_pairs(digits, tmp_path / "pairs", 24)
    options = ["--pairs", str(pairs), "--model", str(tiny_turbo), "--steps", "100", "--rows-per-shard", "2"]

    def submitted(name, until):
        terminal = Terminal(
            head, "ortho", "submit", "--submission-id", name, "assign", *options, "--out", str(tmp_path / name)
        )
        terminal.wait_for(until)
        terminal.type("\x03")
        terminal.wait_for("let it run]")
        return terminal

    def status(name):
        return head.run("ray", "job", "status", name).stdout

    for name, keys in (("left", "n\n"), ("left-twice", "\x03")):
        terminal = submitted(name, "Running entrypoint")
        terminal.type(keys)
        assert terminal.end() == 130
        assert f"ray job logs --follow --address {head.address} {name}" in terminal.shown
        assert "RUNNING" in status(name)
        assert head.run("ray", "job", "stop", name).returncode == 0
    terminal = submitted("stopped", "mean loss")
    terminal.type("y\n")
    assert terminal.end() == 130
    assert "was stopped" in status("stopped")
    followed = head.run("ray", "job", "logs", "stopped")
    assert "ortho assign: interrupted; the same command again goes on from here" in followed.stdout
