"""Which cluster is found, and what is said of one that does not answer, answers as something else, or wants something more."""

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from ortho_core.errors import UserError
from rayjobs.verb import cluster
from rayjobs.verb.cluster import (
    Address,
    check_address,
    check_shared_memory,
    find_address,
    not_started,
    temporary_folder,
)
from tests.conftest import ROOT
from tests.head import free_ports, node_environment, running, short_folder

#: For a process of its own: what is said of the address that it is given.
CHECK = "import sys; from rayjobs.verb.cluster import *; check_address(Address(sys.argv[1], 'RAY_ADDRESS', 'unset it'))"


def refusal(place: str) -> str:
    with pytest.raises(UserError) as error:
        check_address(Address(place, "RAY_ADDRESS", "unset it"))
    line = str(error.value)
    assert line.startswith(f"RAY_ADDRESS names {place}: ")
    assert line.endswith("; --local ignores it and starts a new Ray for this command")
    assert "\n" not in line
    return line


@contextmanager
def listener():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_the_address_is_the_variables_then_the_one_that_ray_start_left(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    for named in ("", "local"):
        monkeypatch.setenv("RAY_ADDRESS", named)
        assert find_address() is None
    record = tmp_path / "ray" / "ray_current_cluster"
    record.parent.mkdir()
    record.write_text("10.0.0.1:6379\n")
    assert find_address() is None
    for named in ("", "auto"):
        monkeypatch.setenv("RAY_ADDRESS", named)
        found = find_address()
        assert (found.place, found.source) == ("10.0.0.1:6379", str(record))
        assert "`ray stop`" in found.remedy
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert (find_address().place, find_address().source) == ("10.0.0.2:6379", "RAY_ADDRESS")


def test_addresses_of_another_kind_are_told_apart_without_a_connection():
    for place in ("http://127.0.0.1:8265", "https://cluster.example/ray"):
        assert f"`ortho submit --address {place} VERB ...`" in refusal(place)
    assert "that address is for Ray's client, which no verb uses" in refusal("ray://127.0.0.1:10001")
    for place in ("nowhere", "127.0.0.1", "127.0.0.1:many", ":6379", "ftp://127.0.0.1:6379", "127.0.0.1:70000"):
        assert "that is not an address of Ray; accepted: HOST:PORT" in refusal(place)


def test_where_nothing_or_something_else_listens_it_is_said_at_once(monkeypatch):
    with listener() as free:
        pass
    assert "nothing answers there (Connection refused)" in refusal(free)
    assert "nothing answers there" in refusal("no-such-host.invalid:6379")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert "what answers there is not Ray; name the address" in refusal(f"127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()
    monkeypatch.setattr(cluster, "ANSWER_S", 0.5)
    with listener() as silent:
        assert "what answers there is not Ray, or a Ray that hangs" in refusal(silent)


def test_a_cluster_of_another_ray_is_refused_with_both_versions():
    import grpc
    from ray.core.generated.gcs_service_pb2 import CheckAliveReply
    from ray.core.generated.gcs_service_pb2_grpc import (
        NodeInfoGcsServiceServicer,
        add_NodeInfoGcsServiceServicer_to_server,
    )

    class Older(NodeInfoGcsServiceServicer):
        def CheckAlive(self, request, context):
            return CheckAliveReply(ray_version="2.9.3")

    server = grpc.server(ThreadPoolExecutor(1))
    add_NodeInfoGcsServiceServicer_to_server(Older(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    assert "that cluster runs Ray 2.9.3, this command Ray 2." in refusal(f"127.0.0.1:{port}")
    server.stop(None).wait()


def test_another_python_on_the_cluster_is_one_line_that_names_both():
    import ray
    from ray._private.utils import check_version_info

    with pytest.raises(RuntimeError) as error:
        check_version_info({"ray_version": ray.__version__, "python_version": "3.9.1"}, "node 10.0.0.1")
    said = str(not_started(error.value, Address("10.0.0.1:6379", "RAY_ADDRESS", ""), "/tmp/ray"))
    assert "Python: 3.9.1" in said
    assert f"Python: {sys.version_info.major}.{sys.version_info.minor}" in said
    assert "\n" not in said


@pytest.mark.usefixtures("ray_session")
def test_a_cluster_that_asks_for_its_token_says_which_is_missing(tmp_path):
    import ray

    place = ray.get_runtime_context().gcs_address
    check_address(Address(place, "RAY_ADDRESS", ""))  # this process started it, and has the token
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    (tmp_path / "token").write_text("0123456789abcdef0123456789abcdef")
    for more, said in [
        ({}, "that cluster accepts its token only; export RAY_AUTH_MODE=token"),
        ({"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)}, "RAY_AUTH_MODE=token needs a token, and none is set here"),
        (
            {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")},
            "has another token than this machine",
        ),
    ]:
        done = subprocess.run(
            [sys.executable, "-c", CHECK, place], env=plain | more, capture_output=True, text=True, check=False
        )
        assert said in done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    """A Ray of `ray start --head` without a token: its port, its environment, and its processes by name."""
    stack = ExitStack()
    folder, (port,) = tmp_path_factory.mktemp("node"), free_ports(1)
    # Of its own: whoever looks for a Ray in this process's folder would find it. And short: sockets lie below it.
    rays_own = stack.enter_context(short_folder())
    env = node_environment(folder, {}) | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(rays_own)}
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=1"]
    command += ["--include-dashboard=false", "--object-store-memory=100000000", "--disable-usage-stats"]
    with stack, running(command, env, folder / "log") as process:
        while "Ray runtime started" not in (folder / "log").read_text():
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.2)
        below = psutil.Process(process.pid).children(recursive=True)
        yield port, env, {each.name(): each for each in below}


@pytest.mark.parametrize(
    ("hung", "says"),
    [
        ("raylet", "that cluster's node on this machine does not answer; restart the node"),
        pytest.param(
            "gcs_server",
            "what answers there is not Ray, or a Ray that hangs; name the address that `ray start` printed",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_cluster_that_hangs_ends_a_verb_in_one_line(hung, says, node, digits, tiny_turbo, tmp_path):
    port, env, processes = node
    argv = ["assign", "--pairs", str(digits), "--model", str(tiny_turbo), "--out", str(tmp_path / "out")]
    processes[hung].suspend()  # the system still takes connections for it, and nobody answers them
    try:
        done = subprocess.run(
            [sys.executable, "-m", "rayjobs", *argv],
            env=env | {"RAY_ADDRESS": f"127.0.0.1:{port}", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    finally:
        processes[hung].resume()
    assert done.returncode == 1
    last = f"ortho assign: RAY_ADDRESS names 127.0.0.1:{port}: {says}; --local ignores it and starts a new Ray for this command"
    assert done.stderr.splitlines()[-1] == last
    assert "Traceback" not in done.stderr


def test_a_folder_too_long_for_sockets_gives_way_to_rays_own(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/short")
    assert temporary_folder() is None
    monkeypatch.setenv("RAY_TMPDIR", f"/scratch/{'a-job-of-a-cluster/' * 4}")
    assert temporary_folder() == "/tmp/ray"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere Ray keeps its objects in files")
def test_without_shared_memory_it_is_said_before_ray_is_started(monkeypatch, capsys):
    monkeypatch.setattr(cluster, "SHARED_MEMORY_BYTES", 1 << 60)
    check_shared_memory()
    assert "objects are kept in files, which is slower (docker run --shm-size=2g)" in capsys.readouterr().err
    monkeypatch.setattr(cluster, "SHARED_MEMORY", Path("/dev/none"))
    with pytest.raises(UserError, match=r"/dev/none is missing or cannot be written: mount it \(docker run --shm-size"):
        check_shared_memory()
