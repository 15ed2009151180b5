"""The end of a process that has imported a lot."""

import atexit
import gc
import os
import sys
import threading
from typing import NoReturn


def leave(code: object) -> NoReturn:
    """End this process as `sys.exit(code)` does, but let the system take its modules back instead of taking them apart.

    Of a process that has imported diffusers that saves a second. What is registered to be called at exit is called, threads
    that are no daemons are waited for, and the standard streams are flushed.
    """
    atexit.unregister(gc.unfreeze)  # `quick_imports` has it called for the sake of what is left out here
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
    status = code if isinstance(code, int) else 0 if code is None else 1
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # nobody reads any more: what Python itself ends with then
            status = status or 120
    os._exit(status)
