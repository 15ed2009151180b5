"""Error reports: an unexpected error ends a verb with one line (what, where, a remedy) and a traceback in a file."""

import errno
import os
import re
import resource
import select
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from ortho_core.errors import DISTRIBUTION, OutOfMemory, RunFailed, UserError, ran_out_of_memory
from ortho_core.text.plain_text import redacted
from rayjobs.verb.paths import outputs
from rayjobs.verb.remedies import remedies

#: The exit code of a command whose output pipe is closed, as a shell reports it: `ortho look PAIRS | head -1`.
CLOSED_PIPE = 141
GIB = 2**30
#: Parts of Ray's messages for a process that was killed from outside.
_KILLED = ("SIGKILL", "OOM killer", "oom-killer", "signal 9", "exit code 137")
GOES_ON = "the same command goes on from here"
REMEDIES = {
    errno.ENOSPC: f"free some room there; {GOES_ON}",
    errno.EDQUOT: f"free some of the quota; {GOES_ON}",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.EMFILE: "raise the limit of open files (ulimit -n 65536)",
    errno.EIO: f"check the disk or the network file system; {GOES_ON}",
    errno.ESTALE: f"mount the network file system again; {GOES_ON}",
}


class ElsewhereTraceback(Exception):
    """The traceback of another process, as text. It is the cause of the error that reports it in this process."""


@dataclass(frozen=True)
class Fault:
    """The description of an error: one line with the place in the code, and what kind of error it is."""

    said: str
    #: Whether memory ran out; `host`: that of the machine, not of a GPU.
    memory: bool = False
    host: bool = False
    #: Whether the code does not expect this error, so that its traceback is needed.
    unexpected: bool = False

    def remedied(self, job: object, rows: int = 0) -> str:
        """The line; if memory ran out, with options of the job that need less. `rows` is the batch size, 0 if unknown."""
        if not self.memory:
            return self.said
        at_once = f" with {rows} at once" if rows else ""
        less = remedies(job, rows, self.host) or [f"use a {'machine with more memory' if self.host else 'larger GPU'}"]
        return f"{self.said}{at_once}; to need less: {', '.join(less)}"


def explained(error: BaseException, job: object = None, rows: int = 0) -> str:
    """One line: the message of the process that failed, its place in the code, and remedies if memory ran out."""
    return fault_of(error).remedied(job, rows)


def last_words(error: Exception, verb: str, job: BaseModel | None) -> str:
    """The command's last line for an unexpected error: what, where, a remedy, and the traceback's file."""
    cause = [*_unwrapped(error)][-1]
    written = [] if job is None else [f"{option} {place}" for option, place in outputs(job)]
    said = _of_files(cause, ", ".join(written) or "standard output") or explained(error, job)
    return _line(f"{said}; {traceback_kept(error, verb)}")


@contextmanager
def of_step(name: str, settings: type[BaseModel], *untouched: type[Exception]) -> Iterator[None]:
    """Inside, an error that ends a step of a larger verb names options in that verb's form: `--assign.slots`.

    Errors of the types `untouched` are not changed.
    """

    def prefixed(option: re.Match[str]) -> str:
        return f"--{name}.{option[1]}" if option[1].replace("-", "_") in settings.model_fields else option[0]

    try:
        yield
    except Exception as error:
        fault = fault_of(error)
        said = re.sub(r"(?<![\w.-])--([a-z][a-z0-9-]*)", prefixed, fault.said)
        if fault.unexpected or said == fault.said or isinstance(error, untouched):
            raise
        refused = isinstance([*_unwrapped(error)][-1], UserError)
        raise (UserError if refused else RunFailed)(said) from error


def _line(text: str) -> str:
    line = " ".join(redacted(text).split())
    return "".join(character if character.isprintable() else "?" for character in line)


def reader_gone() -> bool:
    """Whether the reader of the standard output or of the standard error has closed the pipe."""
    ends = select.poll()
    for descriptor in (1, 2):
        ends.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in ends.poll(0))


def drop_unwritten() -> None:
    """Drop what a standard stream cannot write: Python would try again at its end, and print a traceback."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def fault_of(error: BaseException) -> Fault:
    """The description of an error of this process, or of another process from which Ray brought it."""
    wrappers = [*_unwrapped(error)]
    cause = wrappers[-1]
    place = _place_of(wrappers)
    if isinstance(cause, UserError | RunFailed):
        return Fault(_line(str(cause)), memory=isinstance(cause, OutOfMemory))
    name, text = type(cause).__name__, str(cause)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if type(cause).__module__.startswith("ray."):
        if name == "OutOfMemoryError" or "running low on memory" in text:
            used = next((line for line in lines if "Memory on the node" in line), lines[0] if lines else name)
            return Fault(_line(f"the machine's memory ran out, and Ray ended the worker: {used[:300]}"), True, True)
        if any(sign in text for sign in _KILLED):
            return Fault(
                "a worker's process was killed (signal 9), which the system does if the machine's memory runs out",
                True,
                True,
            )
    if ran_out_of_memory(cause):
        host = isinstance(cause, MemoryError | OSError) or "CPUAllocator" in text
        what = "the machine's memory" if host else "GPU memory" if "CUDA" in text or "HIP" in text else "memory"
        return Fault(_line(f"{what} ran out {place}: {said_of_memory(cause) or name}; {memory_used()}"), True, host)
    if said_of_files := _of_files(cause):
        return Fault(_line(said_of_files), unexpected=True)
    message = (lines[-1] if lines else "no reason given")[:500]
    if isinstance(cause, ImportError):
        return Fault(
            _line(f"{message} ({place}): install {DISTRIBUTION} again, with its requirements"), unexpected=True
        )
    return Fault(_line(f"{name} {place}: {message}"), unexpected=True)


def said_of_memory(error: BaseException) -> str:
    """An allocator's message, without the line of PyTorch that refers to its documentation."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("See documentation"))[:400]


def memory_used() -> str:
    """The peak memory of this process, on its GPU if it has one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        most = torch.cuda.max_memory_allocated()
        return f"this process used {most / GIB:.1f} GiB of {total / GIB:.1f}, {free / GIB:.1f} are free"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"this process used {peak / GIB:.1f} GiB"


def _unwrapped(error: BaseException) -> Iterator[BaseException]:
    """The error and the errors that it wraps. The last one is the error of the process that failed; the others are Ray's."""
    yield error
    failures = getattr(error, "worker_failures", None) or {}
    inside = [
        *failures.values(),
        *(getattr(error, name, None) for name in ("cause", "controller_failure", "_base_exc")),
    ]
    if type(error).__module__.startswith("ray.") and error.__cause__ is not None:
        inside.append(error.__cause__)
    for inner in inside:
        if isinstance(inner, BaseException) and inner is not error:
            yield from _unwrapped(inner)
            return


def _of_files(error: BaseException, place: str = "") -> str:
    """The message for a file that cannot be read or written; "" for other errors.

    `place` is used if the error names no file, as with a write to a full disk.
    """
    if ran_out_of_memory(error):
        return ""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and os.strerror(errno.ENOSPC) in str(error):  # safetensors and others raise other types
        number = errno.ENOSPC
    file = getattr(error, "filename", None)
    if file is not None:
        place = os.fsdecode(file) if isinstance(file, str | bytes) else str(file)
    if number is None or not place:
        return ""
    reason = getattr(error, "strerror", None) or os.strerror(number)
    return f"{place}: {reason} ({_place_of([error])}); {REMEDIES.get(number, GOES_ON)}"


def _place_of(errors: Sequence[BaseException]) -> str:
    """The innermost line of our code in the traceback of an error, else the innermost line of all.

    `errors` are the outer errors and the one they wrap. An error from another process has its traceback as text, or none.
    """
    for error in reversed(errors):
        frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
        text = getattr(error, "_traceback_str", None) or getattr(error, "traceback_str", None) or ""
        frames = frames or [(file, int(line)) for file, line in re.findall(r'File "(.+?)", line (\d+)', text)]
        ours = [(shown, line) for file, line in frames if (shown := _own(file))]
        if ours or frames:
            file, line = ours[-1] if ours else (Path(frames[-1][0]).name, frames[-1][1])
            return f"in {file}, line {line}"
    return "in a worker"


def _own(file: str) -> str:
    """The path inside the checkout of a file of our packages, on any machine; "" for another file."""
    match = re.search(r"(?:^|/)(?<!tests/)((?:ortho_core|rayjobs)/[\w/]+\.py)$", file)
    return match[1] if match else ""


def traceback_kept(error: Exception, verb: str) -> str:
    """Write the traceback to a file that only its owner can read; returns a text with the file's path."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f"ortho-{verb}-", suffix=".traceback", text=True)
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(redacted("".join(traceback.format_exception(error))))
    except OSError:
        return "the traceback cannot be written to a file; ORTHO_TRACEBACK=1 prints it"
    return f"the traceback is in {name}"
