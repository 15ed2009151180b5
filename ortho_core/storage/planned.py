"""Check that a run loads the inputs it was planned with. Loading may happen hours later, in a process on another machine."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ortho_core.errors import UserError, ran_out_of_memory


def check_planned(planned: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Compare the hashes of the plan with those of now. Keys are names for messages: a file, `reward clip`.

    Raises UserError, in one line, for the first name whose hash differs.
    """
    for name in sorted({*planned, *now}):
        if planned.get(name) != now.get(name):
            change = "was removed" if name not in now else "was added" if name not in planned else "has changed"
            raise UserError(
                f"{name} {change} since the run was planned; put back what was there, or start a new run in another folder "
                "(--out)"
            )


@contextmanager
def as_planned(planned: Mapping[str, str], now: Callable[[], Mapping[str, str]]) -> Iterator[None]:
    """Load the planned inputs inside this block. `now` computes their hashes again afterwards, so changes before and during
    loading are detected.

    Raises UserError as `check_planned` does. It replaces an error of the block, which a changed input may have caused.
    """
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            check_planned(planned, now())
        raise
    check_planned(planned, now())
