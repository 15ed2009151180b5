"""One Ray session for a job: a running cluster, or else a local Ray that runs as long as the job."""

import logging
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress

import psutil
import ray
from ray._common.utils import get_default_ray_temp_dir

from ortho_core.text.plain_text import printable
from rayjobs.processes.forks import fork_server
from rayjobs.verb.cluster import (
    Address,
    check_address,
    check_shared_memory,
    find_address,
    not_started,
    temporary_folder,
)
from rayjobs.verb.console import say
from rayjobs.verb.token_file import keep_token_private

# Ray reads both when it is imported. The first avoids a warning of Ray 2.60 about a future default. The second silences lines
# of Ray's core that do not help a user (they stay in the session's logs).
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

# How often Ray Train polls its workers and collects the checkpoint of a finished epoch; Ray's default is 2 s.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")


#: Seconds for which SIGTERM may have no handler while Ray shuts down.
SET_AGAIN_S = 0.001
#: Seconds that the processes of a failed start of Ray have to end before they are killed.
ENDS_S = 3.0


@contextmanager
def without_lines(unwanted: bytes) -> Iterator[None]:
    """Hold back the standard error, also of C++ libraries, and print it afterwards without lines that contain `unwanted`."""
    with tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        terminal = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            held.seek(0)
            for line in held:
                if unwanted not in line:
                    sys.stderr.write(printable(line.decode(errors="replace")))
            sys.stderr.flush()


def undo_start(before: list[psutil.Process]) -> None:
    """After a failed start of Ray, end all processes that this one has started since `before`.

    Ray does not end processes of an incomplete start, and its agents take long to notice that their Ray is gone.
    """
    begun = [process for process in psutil.Process().children(recursive=True) if process not in before]
    end()
    for tell in (psutil.Process.terminate, psutil.Process.kill, psutil.Process.kill):
        for process in begun:
            with suppress(psutil.NoSuchProcess):
                tell(process)
        _, alive = psutil.wait_procs(begun, ENDS_S)
        # A process that a raylet started while it was ending has no parent; the session's name is in its command line.
        if not (begun := [*alive, *of_own_session(alive)]):
            break


def of_own_session(known: list[psutil.Process]) -> list[psutil.Process]:
    """Processes of the Ray that this process started, without those `known`: the session's name has this process's id."""
    session = re.compile(rf"/session_[\d_-]+_{os.getpid()}/")
    processes = psutil.process_iter(["cmdline"])
    return [each for each in processes if each not in known and session.search(" ".join(each.info["cmdline"] or ()))]


@contextmanager
def ray_session() -> Iterator[None]:
    """Connect to the cluster of RAY_ADDRESS or of `ray start`; else start a local Ray and stop it afterwards.

    Raises UserError if the cluster does not answer, or if Ray cannot be started.
    """
    if ray.is_initialized():
        yield
        return
    # Ray Data and Ray Train print tracebacks of errors that they also raise; the code that catches an error reports it.
    for name, level in (("ray", logging.ERROR), ("ray.data", logging.CRITICAL), ("ray.train", logging.CRITICAL)):
        logging.getLogger(name).setLevel(level)
    # There are many actors without CPUs here, on purpose. Ray warns if there are a few times more processes than this number.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(max(8, os.cpu_count() or 1)))
    address = find_address()
    keep_token_private(create=address is None)
    if address is not None:
        check_address(address)
        place, folder = address.place, None
    else:
        check_shared_memory()
        say("Ray: starting one on this machine")
        place, folder = "local", temporary_folder()
    with fork_server() if address is None else nullcontext() as workers:
        with own_sigterm():
            begin(place, folder, workers, address)
        try:
            yield
        finally:
            end()


@contextmanager
def own_sigterm() -> Iterator[None]:
    """Keep this process's SIGTERM handler while Ray starts: Ray's own handlers end the process without a message."""
    before, usual = signal.getsignal(signal.SIGTERM), ray._private.utils.set_sigterm_handler
    ray._private.utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler = usual
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def end() -> None:
    """Run `ray.shutdown` to its end; a signal that arrives in the meantime is handled afterwards.

    Ray's core removes the SIGTERM handler while it shuts down, without Python noticing; a SIGTERM would then end the process
    without a message. Only the main thread can set a handler. So it sets it again and again while Ray shuts down in another.
    """
    mine = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or mine is None:
        ray.shutdown()
        return
    raised: BaseException | None = None
    with ThreadPoolExecutor(1) as beside:
        ending = beside.submit(ray.shutdown)
        while not ending.done():
            try:
                signal.signal(signal.SIGTERM, mine)
                wait([ending], SET_AGAIN_S)
            except BaseException as error:  # whatever a handler raises
                raised = error
    signal.signal(signal.SIGTERM, mine)
    if raised is not None:
        raise raised
    ending.result()


def begin(place: str, folder: str | None, workers: Mapping[str, str] | None, address: Address | None) -> None:
    """Run `ray.init`; if it fails or a signal arrives, leave no process behind."""
    if workers:  # workers that Ray starts in advance are not forks of the fork server
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    before = psutil.Process().children(recursive=True)
    try:
        with without_lines(b"Set ray log level"):
            ray.init(
                place,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=workers or None,
                _temp_dir=folder,
            )
    except BaseException as error:  # Ray raises RuntimeError, ValueError, OSError, or plain Exception
        undo_start(before)
        if not isinstance(error, Exception):  # a signal, which is reported elsewhere
            raise
        raise not_started(error, address, folder or get_default_ray_temp_dir()) from error
