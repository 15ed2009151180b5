"""`python -m rayjobs VERB` is `ortho VERB`, and this is what both start."""

import signal
import sys
from typing import NoReturn


def main(argv: list[str] | None = None) -> NoReturn:
    """Run a verb, and end this process with its exit code."""
    code = run_verb(sys.argv[1:] if argv is None else argv)
    from rayjobs.processes.leaving import leave

    leave(code)


def run_verb(argv: list[str]) -> int:
    """Returns the exit code. What tells the process to end does so in one line from the first import to the last."""
    from rayjobs.verb.interrupts import Interrupted, told_to_end

    name = argv[0] if argv else ""

    def last_line(told: Interrupted) -> None:
        print(f"ortho {name}: {told}", file=sys.stderr, flush=True)

    try:
        with told_to_end(last_line):
            from rayjobs.cli import main as run

            return run(argv)
    except Interrupted as told:  # on the way in or out
        last_line(told)
        return told.code
    finally:
        # The line is said, and only the interpreter is left to end.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
