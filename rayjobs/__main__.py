"""The entry point of `ortho VERB` and of `python -m rayjobs VERB`, which is the same."""

import signal
import sys
from typing import NoReturn


def main(argv: list[str] | None = None) -> NoReturn:
    """Run a verb, and end this process with its exit code."""
    code = run_verb(sys.argv[1:] if argv is None else argv)
    from rayjobs.processes.leaving import leave

    leave(code)


def run_verb(argv: list[str]) -> int:
    """Run a verb; returns the exit code. Ctrl-C and SIGTERM end the process with one line, during imports too."""
    from rayjobs.verb.interrupts import Interrupted, told_to_end

    name = argv[0] if argv else ""

    def last_line(interrupt: Interrupted) -> None:
        print(f"ortho {name}: {interrupt}", file=sys.stderr, flush=True)

    try:
        with told_to_end(last_line):
            from rayjobs.cli import main as run

            return run(argv)
    except Interrupted as interrupt:  # during an import, or after the verb has ended
        last_line(interrupt)
        return interrupt.code
    finally:
        # The last line is printed: another signal must not disturb the end of the interpreter.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
