"""The errors that a user can cause. Each message is one line: the place, what was found and what is accepted."""

from collections.abc import Callable
from typing import Any

from ortho_core.text.parsing import NotParsedError
from ortho_core.text.plain_text import message

#: The name of this package for `pip install`; `ortho` on PyPI is another project.
DISTRIBUTION = "ortho-em"


def install(extra: str) -> str:
    """The command that installs the packages of an optional extra, for the end of a message."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


class UserError(Exception):
    """An input of the user is wrong; the command line prints the message as one line and exits with 1.

    The message is always reduced to one line, without control characters and without secrets in URLs, because it goes to
    terminals, logs and reports.
    """

    def __init__(self, *said: object) -> None:
        super().__init__(*(message(each) if isinstance(each, str) else each for each in said))


def needed(parse: Callable[..., Any], *arguments: Any, remedy: str = "") -> Any:
    """The result of `parse(*arguments)`. Raises UserError, ending with the `remedy`, if `parse` raises NotParsedError."""
    try:
        return parse(*arguments)
    except NotParsedError as error:
        raise UserError(f"{error}; {remedy}" if remedy else str(error)) from error


class NoPairSet(UserError):
    """There is no pair set of any kind at the path."""


class BadRow(UserError):
    """One row of a pair set cannot be used; it is quarantined and the run continues."""

    def __init__(self, reason: str, message: str, image: str = "") -> None:
        super().__init__(message)
        #: Short class of the fault, e.g. `missing-prompt` or `undecodable-image`.
        self.reason = reason
        #: The row's name of its image, or the file that has the row; empty if unknown.
        self.image = image

    def __reduce__(self) -> tuple[type["BadRow"], tuple[str, str, str]]:
        return BadRow, (self.reason, str(self), self.image)


class RunFailed(Exception):
    """The run failed for a reason other than a wrong option, for example because every row of the first shard failed."""

    def __init__(self, *said: object) -> None:
        super().__init__(*(message(each) if isinstance(each, str) else each for each in said))


class OutOfMemory(RunFailed):
    """Memory ran out and smaller batches cannot help any more."""


#: Parts of the messages of PyTorch's allocators, cuBLAS, cuDNN and the C library.
_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "alloc_failed")


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of this package or of a library, means that memory ran out, on a GPU or on the host."""
    if isinstance(error, MemoryError | OutOfMemory) or type(error).__name__ == "OutOfMemoryError":
        return True
    kinds = isinstance(error, RuntimeError | OSError)
    return kinds and any(sign in str(error).lower() for sign in _NO_MEMORY)
