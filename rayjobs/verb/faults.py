"""The last resort: whatever ends a verb is one line with its place and a remedy, and its traceback is in a file."""

import errno
import os
import select
import sys
import tempfile
import traceback
from pathlib import Path

from pydantic import BaseModel

from ortho_core.errors import DISTRIBUTION
from rayjobs.verb.help import leaves
from rayjobs.verb.paths import outputs

#: The exit code that a shell shows of a command whose reader has gone: `ortho look PAIRS | head -1`.
CLOSED_PIPE = 141
CHECKOUT = Path(__file__).resolve().parents[2]
GOES_ON = "the same command goes on from here"
REMEDIES = {
    errno.ENOSPC: f"free some room there; {GOES_ON}",
    errno.EDQUOT: f"free some of the quota; {GOES_ON}",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.EMFILE: "raise the limit of open files (ulimit -n 65536)",
    errno.ENOMEM: f"end other programs; {GOES_ON}",
    errno.EIO: f"see whether the disk or the network's file system is well; {GOES_ON}",
    errno.ESTALE: f"mount the network's file system again; {GOES_ON}",
}


def innermost(error: BaseException) -> str:
    """The worker's own message in one line, without the stack of processes above it; a hint where memory ran out."""
    error = _cause(error)
    lines = [line for line in str(error).splitlines() if line.strip()]
    message = lines[-1].strip() if lines else type(error).__name__
    hint = "; lower --batch-size" if "out of memory" in str(error).lower() else ""
    return message + hint


def last_words(error: Exception, verb: str, job: BaseModel | None) -> str:
    """What the command says of an error that nothing below it explains: what, where, a remedy, the traceback's file."""
    line = " ".join(f"{_fault(_cause(error), job)}; {_kept(error, verb)}".split())
    return "".join(character if character.isprintable() else "?" for character in line)


def reader_gone() -> bool:
    """Whether nobody reads the standard output, or the standard error, any more."""
    ends = select.poll()
    for descriptor in (1, 2):
        ends.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in ends.poll(0))


def drop_unwritten() -> None:
    """Forget what a standard stream cannot write: Python would try again on its way out, and print a traceback."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _cause(error: BaseException) -> BaseException:
    """The error of the process that failed, below those of Ray that brought it here."""
    for failure in (getattr(error, "worker_failures", None) or {}).values():
        error = failure
        break
    while isinstance(inner := getattr(error, "cause", None), BaseException):
        error = inner
    return error


def _fault(error: BaseException, job: BaseModel | None) -> str:
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    message = (said[-1] if said else "no reason given")[:500]
    memory = isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__
    if memory or "out of memory" in str(error).lower():
        lower = " or ".join(_sizes(job)) or "how much is done at once"
        return f"memory ran out {_line_of(error)}: {said[0][:200] if said else type(error).__name__}; lower {lower}"
    if isinstance(error, ImportError):
        return f"{message} ({_line_of(error)}): install {DISTRIBUTION} anew, with all that it needs"
    number = error.errno if isinstance(error, OSError) else None
    if number is None and os.strerror(errno.ENOSPC) in str(error):  # as safetensors and others say it
        number = errno.ENOSPC
    if number is not None:
        remedy = REMEDIES.get(number, GOES_ON)
        reason = getattr(error, "strerror", None) or os.strerror(number)
        return f"{_place(error, job)}: {reason} ({_line_of(error)}); {remedy}"
    return f"{type(error).__name__} {_line_of(error)}: {message}"


def _place(error: BaseException, job: BaseModel | None) -> str:
    """The file, where the error names it; a write to a full disk does not, so the folders that the job writes."""
    file = getattr(error, "filename", None)
    if file is not None:
        return os.fsdecode(file) if isinstance(file, str | bytes) else str(file)
    written = [] if job is None else [f"{option} {place}" for option, place in outputs(job)]
    return ", ".join(written) or "standard output"


def _line_of(error: BaseException) -> str:
    """The innermost line of this distribution on the way to the error, else the innermost of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_own(frame.filename)]
    if not (own or frames):
        return "in a worker"
    frame = (own or frames)[-1]
    file = Path(frame.filename)
    return f"in {file.relative_to(CHECKOUT) if own else file.name}, line {frame.lineno}"


def _is_own(file: str) -> bool:
    return any(Path(file).is_relative_to(CHECKOUT / package) for package in ("ortho_core", "rayjobs"))


def _sizes(job: BaseModel | None) -> list[str]:
    """The options by which the job needs less memory."""
    names = [] if job is None else [name for name, _ in leaves(type(job))]
    return [f"--{name.replace('_', '-')}" for name in names if name.rpartition(".")[2] in {"slots", "batch_size"}]


def _kept(error: Exception, verb: str) -> str:
    """Write the traceback to a file that its owner alone can read; returns where it is."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f"ortho-{verb}-", suffix=".traceback", text=True)
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)
    except OSError:
        return "ORTHO_TRACEBACK=1 shows the traceback, for which no file can be written"
    return f"the traceback is in {name}"
