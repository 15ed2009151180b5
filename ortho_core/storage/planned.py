"""What a run was planned with, compared with what is loaded hours later, by another process on another machine."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ortho_core.errors import UserError, ran_out_of_memory


def check_planned(planned: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Compare hashes, each by what messages call the thing that has it: a file, `reward clip`.

    Raises UserError, in one line, for the first that is not what it was.
    """
    for name in sorted({*planned, *now}):
        if planned.get(name) != now.get(name):
            what = "has gone" if name not in now else "was added" if name not in planned else "has changed"
            raise UserError(
                f"{name} {what} since the run was planned; put back what was there, or give what is there now a run of its own, "
                "in another folder (--out)"
            )


@contextmanager
def as_planned(planned: Mapping[str, str], now: Callable[[], Mapping[str, str]]) -> Iterator[None]:
    """Inside, what the hashes `planned` are of is loaded; `now` takes them again, after that: what changed before or meanwhile
    is found.

    Raises UserError as `check_planned` does, also in the place of the error that loading something else ended with.
    """
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            check_planned(planned, now())
        raise
    check_planned(planned, now())
