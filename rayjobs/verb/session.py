"""One Ray session for a job: the cluster that is there, or a local one for as long as the job runs."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray

# Both are read when ray is imported. The first is the default that Ray 2.60 announces a change of at every start; the
# second silences lines of its core that a person at a terminal can do nothing about (they stay in the session's logs).
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

# How often Ray Train looks after its workers, and takes a finished epoch's checkpoint from them; 2 s unless told.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")


def innermost(error: BaseException) -> str:
    """The worker's own message in one line, without the stack of processes above it; a hint where memory ran out."""
    for failure in (getattr(error, "worker_failures", None) or {}).values():
        error = failure
        break
    while (inner := getattr(error, "cause", None)) is not None:
        error = inner
    lines = [line for line in str(error).splitlines() if line.strip()]
    message = lines[-1].strip() if lines else type(error).__name__
    hint = "; lower --batch-size" if "out of memory" in str(error).lower() else ""
    return message + hint


@contextmanager
def ray_session() -> Iterator[None]:
    """Connect to the cluster of RAY_ADDRESS or of `ray start`, else start a local one and stop it afterwards."""
    if ray.is_initialized():
        yield
        return
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Actors without CPUs of their own are many here, on purpose: Ray warns of so many processes at a few times this number.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(max(8, os.cpu_count() or 1)))
    on_sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has set its own, which ends the process without a word
    try:
        yield
    finally:
        ray.shutdown()
