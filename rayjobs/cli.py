"""The command `ortho`: one verb per job."""

import difflib
import os
import sys
import traceback
import warnings
from contextlib import suppress

import yaml
from pydantic import BaseModel

from ortho_core import __version__
from ortho_core.errors import RunFailed, UserError
from ortho_core.text.plain_text import printable, redacted_all
from rayjobs.verb.faults import CLOSED_PIPE, drop_unwritten, last_words, reader_gone
from rayjobs.verb.interrupts import as_told
from rayjobs.verb.options import Parsed, as_yaml, parse
from rayjobs.verb.paths import check_outputs
from rayjobs.verb.table import VERBS, Verb


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Exit code 0: done; 1: refused or failed; 3: done, with rows quarantined; 130: Ctrl-C; 143: SIGTERM.

    Every error is printed as one line; with ORTHO_TRACEBACK=1 its traceback is printed before it.
    """
    argv = sys.argv[1:] if argv is None else argv
    name = argv[0] if argv else ""
    parsed: Parsed[BaseModel] | None = None
    try:
        if name == "help" and argv[1:]:
            name, argv = argv[1], [argv[1], "--help"]
        if name in {"", "-h", "--help", "help"}:
            print_verbs()
            code = 0 if name else 1
        elif name in {"-V", "--version"}:
            print(f"ortho {__version__}")
            code = 0
        elif name == "completion":
            from rayjobs.verb.completion import completion  # imports the options of every verb

            print(completion(argv[1:]), end="")
            code = 0
        else:
            verb = find(name)
            parsed = parse(verb.model(), argv[1:], name)
            code = carry_out(parsed, verb)
        sys.stdout.flush()
        return code
    except (UserError, RunFailed) as error:
        return ended(name, str(error), error)
    except KeyboardInterrupt as error:
        interrupt = as_told(error)
        ended(name, str(interrupt))
        return interrupt.code
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_gone():
            return CLOSED_PIPE
        return ended(name, last_words(error, name, None if parsed is None else parsed.job), error)
    finally:
        drop_unwritten()


def print_verbs() -> None:
    print("usage: ortho VERB [--config FILE.yaml] [--some-field value ...]\n")
    print("\n".join(f"  {name:14}{verb.help}" for name, verb in VERBS.items()))
    print("\n`ortho help VERB` shows an example and the main options; `ortho VERB --help-all` shows all options.")
    print('`eval "$(ortho completion bash)"` makes the shell complete verbs and options; zsh works too.')


def find(name: str) -> Verb:
    """The verb of this name; its modules are not imported yet. Raises UserError for an unknown name."""
    if name not in VERBS:
        close = difflib.get_close_matches(name, VERBS, n=1)
        raise UserError(
            f"unknown verb {name!r}; {f'did you mean {close[0]}? ' if close else ''}accepted: {', '.join(VERBS)}"
        )
    # Warnings and progress bars of Ray and diffusers would hide the job's own lines.
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return VERBS[name]


def carry_out(parsed: Parsed[BaseModel], verb: Verb) -> int:
    """Run the job, or print its configuration or its dry run; returns the exit code."""
    if parsed.print_config:
        print(as_yaml(parsed.job), end="")
        return 0
    if parsed.local:
        os.environ["RAY_ADDRESS"] = "local"
    check_outputs(parsed.job)
    run, describe = verb.load()
    if parsed.dry_run:
        print(yaml.safe_dump(redacted_all(describe(parsed.job)), sort_keys=False), end="")
        return 0
    code = run(parsed.job)
    for line in verb.ending(parsed.job, code):
        print(printable(line), file=sys.stderr, flush=True)
    return code


def ended(name: str, line: str, error: Exception | None = None) -> int:
    """Print the last line; returns 1, the exit code of a failure."""
    with suppress(OSError):  # the standard error may be closed
        if error is not None and os.environ.get("ORTHO_TRACEBACK") == "1":
            print(printable("".join(traceback.format_exception(error))), end="", file=sys.stderr)
        print(printable(f"ortho {name}: {line}"), file=sys.stderr, flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
