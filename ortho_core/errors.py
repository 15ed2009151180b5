"""The errors that a user can cause, each told in one line that names the place, what was found and what is accepted."""

from collections.abc import Callable
from typing import Any

from ortho_core.text.parsing import NotParsedError
from ortho_core.text.plain_text import message

#: What `pip install` calls this package; `ortho` on PyPI is another project.
DISTRIBUTION = "ortho-em"


def install(extra: str) -> str:
    """The command that installs what an optional part needs, for the end of a message."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


class UserError(Exception):
    """Something the user gave is wrong; the command line prints the message as one line and exits with 1.

    Whatever it is given, the message is one line without control characters and without secrets of URLs: it goes to terminals,
    logs and reports.
    """

    def __init__(self, *said: object) -> None:
        super().__init__(*(message(each) if isinstance(each, str) else each for each in said))


def needed(parse: Callable[..., Any], *arguments: Any, remedy: str = "") -> Any:
    """What `parse` makes of its arguments, where a user has to know that it is not parsed. Raises UserError with the `remedy`."""
    try:
        return parse(*arguments)
    except NotParsedError as error:
        raise UserError(f"{error}; {remedy}" if remedy else str(error)) from error


class NoPairSet(UserError):
    """There is no pair set of any kind at the place."""


class BadRow(UserError):
    """One row of a pair set cannot be used; it is quarantined and the run goes on."""

    def __init__(self, reason: str, message: str, image: str = "") -> None:
        super().__init__(message)
        #: Short class of the fault, e.g. `missing-prompt` or `undecodable-image`.
        self.reason = reason
        #: What the row calls its image, or the file that the row is in; where that is known.
        self.image = image

    def __reduce__(self) -> tuple[type["BadRow"], tuple[str, str, str]]:
        return BadRow, (self.reason, str(self), self.image)


class RunFailed(Exception):
    """The run ended because of what happened in it (every row of the first shard failed, say), not a wrong option."""

    def __init__(self, *said: object) -> None:
        super().__init__(*(message(each) if isinstance(each, str) else each for each in said))


class OutOfMemory(RunFailed):
    """Memory ran out where computing less at once is no way out any more."""


#: What libraries say of it: PyTorch's allocators, cuBLAS and cuDNN, the C library.
_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "alloc_failed")


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of this package or of a library, means that memory ran out, on a GPU or on the host."""
    if isinstance(error, MemoryError | OutOfMemory) or type(error).__name__ == "OutOfMemoryError":
        return True
    kinds = isinstance(error, RuntimeError | OSError)
    return kinds and any(sign in str(error).lower() for sign in _NO_MEMORY)
