"""The KubeRay manifests, rendered: their structure, their versions, and that what they start is a command that runs."""

import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from rayjobs.cli import main
from rayjobs.verb.options import parse
from rayjobs.verb.table import VERBS
from tests.cluster.kustomize import by_kubectl, render
from tests.conftest import ROOT

KUBERAY = ROOT / "cluster" / "kuberay"
JOBS = [f"{kind}/{path.name}" for kind in ("jobs", "overlays") for path in sorted((KUBERAY / kind).iterdir())]
ALL = [*JOBS, "development"]


def of_kind(documents, kind):
    (found,) = [d for d in documents if d["kind"] == kind]
    return found


def cluster_of(documents):
    kinds = {d["kind"]: d for d in documents}
    return kinds["RayJob"]["spec"]["rayClusterSpec"] if "RayJob" in kinds else kinds["RayCluster"]["spec"]


def pods(documents):
    """Every pod's specification and labels: head, workers, submitter, and of other controllers."""
    templates = []
    for document in documents:
        if document["kind"] in {"RayJob", "RayCluster"}:
            cluster = cluster_of([document])
            templates += [cluster["headGroupSpec"]["template"], *(w["template"] for w in cluster["workerGroupSpecs"])]
        templates += [document["spec"][n] for n in ("submitterPodTemplate",) if n in document.get("spec", {})]
        templates += [document["spec"]["template"]] if document["kind"] in {"StatefulSet", "Deployment"} else []
        templates += [document] if document["kind"] == "Pod" else []
    return [(template["spec"], template["metadata"]["labels"]) for template in templates]


@pytest.mark.parametrize("name", [*ALL, "common", "loader", "history"])
def test_kubectl_renders_what_this_renders(name):
    ours = {(d["kind"], d["metadata"]["name"]): d for d in render(KUBERAY / name)}
    theirs = by_kubectl(KUBERAY / name)
    if theirs is None:
        pytest.skip("no kubectl")
    assert {(d["kind"], d["metadata"]["name"]): d for d in theirs} == ours


@pytest.mark.parametrize("name", ALL)
def test_versions_agree(name):
    documents = render(KUBERAY / name)
    ray = re.search(r"^ray==([\d.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)[1]
    assert cluster_of(documents)["rayVersion"] == ray == version("ray")
    images = {container["image"] for spec, _ in pods(documents) for container in spec["containers"]}
    assert images - {"redis:7.4"} == {f"registry.example.com/ortho:{ray}"}


@pytest.mark.parametrize("name", [*ALL, "loader", "history"])
def test_every_pod_is_confined(name):
    documents = render(KUBERAY / name)
    assert pods(documents)
    for spec, labels in pods(documents):
        assert labels["app"] == "ortho"  # the network policy's and the disruption budget's selector
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
        for container in spec["containers"]:
            confined = container["securityContext"]
            assert confined["allowPrivilegeEscalation"] is False
            assert confined["readOnlyRootFilesystem"] is True
            assert confined["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"].keys() == container["resources"]["limits"].keys()
            mounts = {mount["mountPath"]: volumes.get(mount["name"]) for mount in container["volumeMounts"]}
            if container["name"] in {"ray-head", "ray-worker"}:
                assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
                assert mounts["/data"]["persistentVolumeClaim"]["claimName"] == "ortho-data"
                assert "emptyDir" in mounts["/tmp"]


@pytest.mark.parametrize("name", ALL)
def test_there_are_walls_around_the_pods_and_secrets_are_named_only(name):
    documents = render(KUBERAY / name)
    assert of_kind(documents, "NetworkPolicy")["spec"]["podSelector"] == {"matchLabels": {"app": "ortho"}}
    budget = of_kind(documents, "PodDisruptionBudget")["spec"]
    head_labels = cluster_of(documents)["headGroupSpec"]["template"]["metadata"]["labels"]
    assert budget["selector"]["matchLabels"] == head_labels
    assert of_kind(documents, "PersistentVolumeClaim")["metadata"]["name"] == "ortho-data"
    assert "Secret" not in {d["kind"] for d in documents}
    values = re.findall(r"(?i)(?:password|token|secret|key)\w*: *(\S+)", yaml.safe_dump(documents))
    assert set(values) <= {
        "ortho-ray-token",
        "false",
        "password",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        *(v for v in values if re.fullmatch(r"[\w.]+/[\w-]+", v)),
    }


@pytest.mark.parametrize("name", ALL)
def test_the_cluster_is_one_that_ray_and_kuberay_can_run(name):
    cluster = cluster_of(render(KUBERAY / name))
    assert cluster["authOptions"] == {"mode": "token", "secretName": "ortho-ray-token"}
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    names = [worker["groupName"] for worker in cluster["workerGroupSpecs"]]
    assert len(set(names)) == len(names)
    scales = cluster.get("enableInTreeAutoscaling", False)
    # The autoscaler beside the head needs the account's token; nothing else does.
    assert head["template"]["spec"].get("automountServiceAccountToken", True) is scales
    if scales:
        assert cluster["autoscalerOptions"]["version"] == "v2"
        groups = [head, *cluster["workerGroupSpecs"]]
        assert {group["template"]["spec"]["restartPolicy"] for group in groups} == {"Never"}
    for worker in cluster["workerGroupSpecs"]:
        assert worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]
        assert scales or worker["minReplicas"] == worker["maxReplicas"]
        spec = worker["template"]["spec"]
        assert spec["automountServiceAccountToken"] is False
        on_gpus = "nvidia.com/gpu" in spec["containers"][0]["resources"]["limits"]
        assert on_gpus == (worker["groupName"] == "gpu") == ("nodeSelector" in spec)
        assert on_gpus == any(t["key"] == "nvidia.com/gpu" for t in spec.get("tolerations", []))


@pytest.mark.parametrize("name", JOBS)
def test_a_job_ends_retries_and_cleans_up(name):
    job = of_kind(render(KUBERAY / name), "RayJob")
    spec = job["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert ("kueue.x-k8s.io/queue-name" in job["metadata"]["labels"]) == name.endswith("/kueue")
    assert ("gcsFaultToleranceOptions" in spec["rayClusterSpec"]) == name.endswith("/long-run")
    spot = "affinity" in spec["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert spot == name.endswith("/spot")


def plain(variables):
    """Those that have a value, and do not refer to a secret."""
    return {variable["name"]: variable["value"] for variable in variables if "value" in variable}


def test_the_history_server_reads_what_the_collectors_write():
    """KubeRay's operator adds the collectors, and refuses one without an image, or without the variables of its store."""
    job, served = render(KUBERAY / "overlays" / "history"), render(KUBERAY / "history")
    collector = cluster_of(job)["historyServerOptions"]["collectorOptions"]
    (server,) = of_kind(served, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert plain(collector["env"]) == plain(server["env"])
    assert plain(server["env"]).keys() == {"STORAGE_BACKEND", "STORAGE_ROOT_DIR", "S3_BUCKET", "S3_REGION"}
    assert plain(server["env"])["STORAGE_BACKEND"] == "s3"
    secrets = {
        variable["valueFrom"]["secretKeyRef"]["name"] for variable in collector["env"] if "valueFrom" in variable
    }
    assert secrets == {source["secretRef"]["name"] for source in server["envFrom"]} == {"ortho-object-store"}
    images = [container["image"].rpartition(":")[2] for container in (collector, server)]
    assert images == ["v1.7.1", "v1.7.1"]
    # Its account may list clusters, and read nothing else.
    rules = of_kind(served, "ClusterRole")["rules"]
    assert rules == [{"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["get", "list"]}]
    binding = of_kind(served, "ClusterRoleBinding")
    account = of_kind(served, "ServiceAccount")["metadata"]["name"]
    pod = of_kind(served, "Deployment")["spec"]["template"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "ortho"}]
    assert pod["spec"]["serviceAccountName"] == account
    assert of_kind(served, "Service")["spec"]["selector"] == pod["metadata"]["labels"]


def entrypoint(name) -> tuple[list[str], dict[str, str]]:
    """The command line of a job, without the shell around it, and the files beside it."""
    documents = render(KUBERAY / name)
    shell, flag, script = shlex.split(of_kind(documents, "RayJob")["spec"]["entrypoint"])
    assert (shell, flag) == ("bash", "-c")
    command, _, after = script.partition(" || ")
    assert after == "test $? -eq 3"
    return shlex.split(command), of_kind(documents, "ConfigMap")["data"]


@pytest.mark.parametrize(("verbs_own", "jobs"), [(0, 0), (3, 0), (1, 1)])
def test_quarantined_rows_are_no_reason_to_try_again(verbs_own, jobs, tmp_path):
    """As KubeRay hands an entrypoint on: through the submitter's shell and Ray's client to the shell of the head."""
    (tmp_path / "ortho").write_text(f"#!/bin/sh\nexit {verbs_own}\n")
    (tmp_path / "ortho").chmod(0o755)
    given = of_kind(render(KUBERAY / "jobs" / "em"), "RayJob")["spec"]["entrypoint"]
    client = "import shlex, sys; print(shlex.join(sys.argv[2:]))"
    submitted = ["bash", "-ce", f"{sys.executable} -c '{client}' -- {given} ;"]
    handed_on = subprocess.run(submitted, check=True, capture_output=True, text=True).stdout
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    assert subprocess.run(handed_on, shell=True, env=env, check=False).returncode == jobs


@pytest.mark.parametrize("name", JOBS)
def test_the_entrypoint_is_a_command_line_that_its_verb_accepts(name, tmp_path):
    (program, verb, *options), files = entrypoint(name)
    assert program == "ortho"
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    options = [option.replace("/etc/ortho", str(tmp_path)) for option in options]
    job = parse(VERBS[verb].model(), options, verb).job
    cluster = cluster_of(render(KUBERAY / name))
    for steps in [job] if verb == "assign" else [job.assign, job.train, job.evaluate]:
        assert steps.autoscaling == cluster.get("enableInTreeAutoscaling", False)


@pytest.mark.parametrize("name", ["jobs/em", "jobs/sweep", pytest.param("jobs/assign", marks=pytest.mark.slow)])
def test_a_dry_run_of_the_entrypoint_makes_its_plan(name, tmp_path, capsys, small_pairs, digits, tiny_turbo):
    """With this checkout's model and pairs in the place of the cluster's."""
    (_, verb, *options), files = entrypoint(name)
    places = {"/data/pairs/heldout.jsonl": digits / "heldout.jsonl", "/data/pairs": small_pairs}
    places |= {"/data/models/tiny-turbo": tiny_turbo, "/data/runs": tmp_path / "runs"}
    for file, text in files.items():
        for place, here in places.items():
            text = text.replace(place, str(here))
        Path(tmp_path / file).write_text(text)
    options = [option.replace("/etc/ortho", str(tmp_path)) for option in options]
    assert main([verb, *options, "--dry-run"]) == 0
    said = yaml.safe_load(capsys.readouterr().out)
    assert len(said["trials"]) == 6 if verb == "sweep" else said["rows"] == 24
    assert not (tmp_path / "runs").exists()
