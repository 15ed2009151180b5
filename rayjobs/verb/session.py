"""One Ray session for a job: the cluster that is there, or a local one for as long as the job runs."""

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

# Both are read when ray is imported. The first is the default that Ray 2.60 announces a change of at every start; the
# second silences lines of its core that a person at a terminal can do nothing about (they stay in the session's logs).
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

# How often Ray Train looks after its workers, and takes a finished epoch's checkpoint from them; 2 s unless told.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")


#: Seconds for which SIGTERM may be without a handler while Ray ends.
SET_AGAIN_S = 0.001
#: Seconds that processes of a Ray that did not start have to end by themselves.
ENDS_S = 3.0


@contextmanager
def without_lines(unwanted: bytes) -> Iterator[None]:
    """Hold back what is written to the standard error, by libraries in C++ too; print it afterwards without some lines."""
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
    """End a Ray that did not come to be, with all processes that were not there `before`.

    Ray itself forgets those that it began in the midst of its start, and its agents take long to notice that they are alone.
    """
    begun = [process for process in psutil.Process().children(recursive=True) if process not in before]
    end()
    for tell in (psutil.Process.terminate, psutil.Process.kill, psutil.Process.kill):
        for process in begun:
            with suppress(psutil.NoSuchProcess):
                tell(process)
        _, alive = psutil.wait_procs(begun, ENDS_S)
        # What a raylet began while it was ending has lost its parent: its command line names the session.
        if not (begun := [*alive, *of_own_session(alive)]):
            break


def of_own_session(known: list[psutil.Process]) -> list[psutil.Process]:
    """Other processes than those `known`, of a Ray that this process began: Ray puts its number into the session's name."""
    session = re.compile(rf"/session_[\d_-]+_{os.getpid()}/")
    found = psutil.process_iter(["cmdline"])
    return [each for each in found if each not in known and session.search(" ".join(each.info["cmdline"] or ()))]


@contextmanager
def ray_session() -> Iterator[None]:
    """Connect to the cluster of RAY_ADDRESS or of `ray start`, else start a local one and stop it afterwards.

    Raises UserError where the cluster does not answer, or none can be started.
    """
    if ray.is_initialized():
        yield
        return
    # What Data and Train raise is said by those who catch it; they would print its traceback besides.
    for name, level in (("ray", logging.ERROR), ("ray.data", logging.CRITICAL), ("ray.train", logging.CRITICAL)):
        logging.getLogger(name).setLevel(level)
    # Actors without CPUs of their own are many here, on purpose: Ray warns of so many processes at a few times this number.
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
    """While Ray starts, what this process does when it is told to end stays what it was.

    Ray sets handlers of its own, which end the process without a word.
    """
    before, usual = signal.getsignal(signal.SIGTERM), ray._private.utils.set_sigterm_handler
    ray._private.utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler = usual
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def end() -> None:
    """`ray.shutdown`, to its end: a signal that comes meanwhile does what it does elsewhere, but afterwards.

    Ray's core takes SIGTERM's handler away while it ends, behind Python's back, and the process would end without a word for the
    second that is left. Only the main thread can set a handler, so it does, again and again, and Ray ends in another.
    """
    mine = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or mine is None:
        ray.shutdown()
        return
    told: BaseException | None = None
    with ThreadPoolExecutor(1) as beside:
        ending = beside.submit(ray.shutdown)
        while not ending.done():
            try:
                signal.signal(signal.SIGTERM, mine)
                wait([ending], SET_AGAIN_S)
            except BaseException as error:  # whatever a handler raises
                told = error
    signal.signal(signal.SIGTERM, mine)
    if told is not None:
        raise told
    ending.result()


def begin(place: str, folder: str | None, workers: Mapping[str, str] | None, address: Address | None) -> None:
    """`ray.init`; leaves nothing behind where it fails or this process is told to end."""
    if workers:  # those that Ray would start before it is asked for any are not of them
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
    except BaseException as error:  # Ray raises RuntimeError, ValueError, OSError, or Exception itself
        undo_start(before)
        if not isinstance(error, Exception):  # told to end, and that is said elsewhere
            raise
        raise not_started(error, address, folder or get_default_ray_temp_dir()) from error
