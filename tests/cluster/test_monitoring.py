"""The dashboard and the alerts: every metric that they name is one that a job exports while it runs."""

import json
import re
import shutil
import subprocess
import time
import urllib.request
from contextlib import suppress

import psutil
import pytest
import yaml
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from tests.conftest import ROOT, copy_pairs
from tests.head import one_machine, short_folder

MONITORING = ROOT / "cluster" / "monitoring"


def panels():
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def rules():
    return [r for g in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for r in g["rules"]]


def metrics(expression: str) -> set[str]:
    return set(re.findall(r"\bray_\w+(?=[\[{ )]|$)", re.sub(r"\bby \([^)]*\)", "", expression)))


def named() -> set[str]:
    expressions = [target["expr"] for panel in panels() for target in panel["targets"]]
    return set().union(*map(metrics, [*expressions, *(rule["expr"] for rule in rules())]))


def test_the_dashboard_is_laid_out_without_overlap_and_every_panel_asks_something():
    every = json.loads((MONITORING / "grafana-dashboard.json").read_text())["panels"]
    cells = [
        (x, y)
        for panel in every
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in every}) == len(every)
    for panel in panels():
        assert panel["targets"]
        assert all(metrics(target["expr"]) for target in panel["targets"])


def test_alerts_say_what_to_do():
    found = rules()
    assert {"OrthoStalled", "OrthoFailureRate", "OrthoNoFreeSlots"} <= {rule["alert"] for rule in found}
    for rule in found:
        assert metrics(rule["expr"])
        assert rule["annotations"].keys() == {"summary", "action"}


def test_prometheus_reads_the_files():
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("no promtool")
    for what, file in (("rules", "alerts.yaml"), ("config", "prometheus.yaml")):
        done = subprocess.run([tool, "check", what, MONITORING / file], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def exported(port: int) -> set[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        text = page.read().decode()
    return {re.split(r"[{ ]", line)[0] for line in text.splitlines() if line and line[0] != "#"}


def decoder_under(folder) -> psutil.Process | None:
    """A process that decodes images for the cluster whose session lies in `folder`."""
    for process in psutil.process_iter(["cmdline"]):
        if "ray::Decoder" in " ".join(process.info["cmdline"] or []):
            with suppress(psutil.Error):
                if process.environ().get("RAY_TMPDIR") == str(folder):
                    return process
    return None


@pytest.mark.slow
def test_every_metric_that_is_named_is_exported_by_a_running_job(tmp_path, tiny_turbo, digits):
    """An EM run with a bad row and a decoder that is killed, since a counter appears with the first thing it counts."""
    pairs = copy_pairs(digits, tmp_path / "pairs", 24)
    (pairs / "images" / "0003.png").unlink()
    command = ["em", "--pairs", str(pairs), "--model", str(tiny_turbo), "--work-dir", str(tmp_path / "em")]
    command += ["--cycles", "1", "--assign.steps", "20", "--assign.rows-per-shard", "2", "--assign.slots", "2"]
    command += ["--train.epochs", "2", "--train.batch-size", "8"]
    on_gpus = {name for name in named() if re.match(r"ray_node_g(pus|ram)_", name)}
    assert {name.removeprefix("ray_") for name in on_gpus} <= METRICS_GAUGES.keys()
    wanted, seen, killed = named() - on_gpus, set(), False
    with short_folder() as folder, one_machine(folder, cpus=4) as head:
        submit = head.command("ortho", "submit", *command)
        with (tmp_path / "log").open("w") as log:
            job = subprocess.Popen(submit, env=head.client(), stdout=log, stderr=log)
        while job.poll() is None and not wanted <= seen:
            with suppress(OSError):  # the node's agent is up a little later than the head
                seen |= exported(head.metrics_port)
            if not killed and (decoder := decoder_under(folder)) is not None:
                decoder.kill()
                killed = True
            time.sleep(0.5)
        job.terminate()
        job.wait()
    assert wanted - seen == set(), (tmp_path / "log").read_text()
