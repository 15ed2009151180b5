"""The command `ortho`: one verb per job."""

import importlib
import os
import signal
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel

from ortho_core.errors import RunFailed, UserError
from rayjobs.verb.options import as_yaml, parse


@dataclass(frozen=True)
class Verb:
    module: str
    job: str
    help: str

    def load(self) -> tuple[type[BaseModel], Callable[[Any], int], Callable[[Any], dict[str, Any]]]:
        module = importlib.import_module(self.module)
        return getattr(module, self.job), module.run, module.plan


VERBS = {
    "assign": Verb("rayjobs.assign.job", "AssignJob", "E-step: find each image's noise, over a pair set"),
    "invert": Verb("rayjobs.invert", "InvertJob", "E-step for one image, with pictures and curves"),
    "train": Verb("rayjobs.train.job", "TrainJob", "M-step: fine-tune on matched (or random) noise"),
    "em": Verb("rayjobs.em.job", "EmJob", "alternate E-step and M-step, evaluate, report"),
    "sweep": Verb("rayjobs.sweep.job", "SweepJob", "try settings: target fit against drift, with the Pareto front"),
    "evaluate": Verb("rayjobs.evaluate.job", "EvaluateJob", "held-out metrics of one or more models"),
    "reward": Verb(
        "rayjobs.reward.job", "RewardJob", "find the noise whose image scores highest, for one prompt or many"
    ),
    "train-gan": Verb(
        "rayjobs.train_gan.job", "TrainGanJob", "a small one-step generator of labelled images, from MNIST on"
    ),
    "generate": Verb("rayjobs.generate", "GenerateJob", "images from a model folder"),
    "export": Verb(
        "rayjobs.assign.export_reference", "ExportJob", "assignments as the reference's folder of noise files"
    ),
    "import": Verb(
        "rayjobs.assign.import_reference", "ImportJob", "the reference's folder of noise files as assignments"
    ),
    "submit": Verb("rayjobs.submit", "SubmitJob", "run one of these on a cluster, and follow it"),
    "download": Verb("rayjobs.download.job", "DownloadJob", "models of the catalogue, into models/"),
    "verify-noise": Verb("rayjobs.verify_noise", "VerifyNoiseJob", "the Gaussian statistics of rotated noise"),
}


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
        model, run, plan = VERBS[name].load()
        parsed = parse(model, rest, name)
        if parsed.print_config:
            print(as_yaml(parsed.job), end="")
            return 0
        if parsed.dry_run:
            print(yaml.safe_dump(plan(parsed.job), sort_keys=False), end="")
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
