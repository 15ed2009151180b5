import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rayjobs.processes import fork_client
from rayjobs.processes.forks import fork_server
from tests.conftest import forked_workers
from tests.rayjobs.processes.made import say, server_of


def test_the_process_has_all_that_the_client_had(tmp_path):
    runtime_env = forked_workers()
    environment = {**os.environ, "WORD": "é\n\udcff"}
    had = {signal.SIGINT, signal.SIGUSR1}
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, had)
        said, other = say(runtime_env, tmp_path, "one", "two words", env=environment, preexec_fn=lambda: os.nice(3))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, had)
    assert said["preloaded"]
    assert said["parent"] == server_of(runtime_env).pid
    assert said["group"] == said["pid"]
    assert said["argv"] == [str(tmp_path / "program.py"), "one", "two words"]
    assert (said["folder"], said["home"]) == (str(tmp_path), str(tmp_path))
    assert said["word"] == environment["WORD"]
    assert set(said["blocked"]) == {int(each) for each in had}
    assert said["niceness"] == os.nice(0) + 3
    assert said["interrupts"]
    assert said["children"]
    assert other == "to the other stream\n"


def test_where_modules_are_to_be_found_elsewhere_a_new_python_begins(tmp_path):
    said, _ = say(forked_workers(), tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert not said["preloaded"]
    assert said["argv"] == [str(tmp_path / "program.py")]


@pytest.mark.parametrize("address", ["", "no-server-has-this-address"])
def test_where_none_answers_it_is_python_itself(address, tmp_path):
    command = [sys.executable, "-I", "-S", str(Path(fork_client.__file__).resolve()), address]
    said, _ = say({"py_executable": shlex.join(command)}, tmp_path, "one")
    assert not said["preloaded"]
    assert said["argv"] == [str(tmp_path / "program.py"), "one"]
    (tmp_path / "ends.py").write_text("raise SystemExit(7)")
    assert subprocess.run([*command, tmp_path / "ends.py"], check=False).returncode == 7


def test_who_gives_up_waiting_is_one_process_and_not_two(tmp_path, monkeypatch):
    """While the server imports, or is stopped by a debugger; Ray would have two workers of one name."""
    (tmp_path / "writes.py").write_text("import sys; open(sys.argv[1], 'a').write('begun ')")
    monkeypatch.setattr(fork_client, "FORK_ANSWER_S", 0.2)
    with fork_server() as runtime_env:
        server = server_of(runtime_env)
        server.suspend()
        address = shlex.split(runtime_env["py_executable"])[-1]
        assert not fork_client.asked(address, [str(tmp_path / "writes.py"), str(tmp_path / "written")])
        server.resume()
        said, _ = say(runtime_env, tmp_path)  # it serves the next, and so has looked at the one before
    assert said["preloaded"]
    assert not (tmp_path / "written").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be somebody else")
def test_another_user_gets_no_process_of_ours(tmp_path):
    """What answers there runs any program that it is told, as us."""
    program = f"import sys; sys.path[:] = {sys.path!r}; from rayjobs.processes.fork_client import asked; "
    address = shlex.split(forked_workers()["py_executable"])[-1]
    program += f"import os; os.setuid(65534); print(asked({address!r}, ['/nowhere']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr
