"""The command `ortho`: one verb per job."""

import os
import signal
import sys
import warnings

import yaml

from ortho_core.errors import RunFailed, UserError
from rayjobs.verb.options import as_yaml, parse
from rayjobs.verb.paths import check_outputs
from rayjobs.verb.table import VERBS


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Exit code 0: done; 1: refused or failed; 3: done, with rows quarantined."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in {"-h", "--help", "help"}:
        print("usage: ortho VERB [--config FILE.yaml] [--some-field value ...]\n")
        print("\n".join(f"  {name:14}{verb.help}" for name, verb in VERBS.items()))
        print("\n`ortho VERB --help` lists the options of a verb.")
        return 0 if argv else 1
    name, rest = argv[0], argv[1:]
    try:
        if name not in VERBS:
            raise UserError(f"unknown verb {name!r}; accepted: {', '.join(VERBS)}")
        # Ray and diffusers announce their own plans to the terminal; the person at it asked for something else.
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        model, run, describe = VERBS[name].load()
        parsed = parse(model, rest, name)
        if parsed.print_config:
            print(as_yaml(parsed.job), end="")
            return 0
        check_outputs(parsed.job)
        if parsed.dry_run:
            print(yaml.safe_dump(describe(parsed.job), sort_keys=False), end="")
            return 0
        # A scheduler's SIGTERM ends the job the way Ctrl-C does: Ray is shut down, nothing half-written stays.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        return run(parsed.job)
    except (UserError, RunFailed) as error:
        print(f"ortho {name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"ortho {name}: interrupted; the same command again goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
