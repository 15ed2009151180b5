"""Which verbs there are: one line for each. None of their modules is imported before it is needed."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

Run = Callable[[Any], int]
Describe = Callable[[Any], Mapping[str, object]]


@dataclass(frozen=True)
class Verb:
    """The module with a verb's `run` and `describe`, the class of its options, what it is for.

    Help and refusals load the options alone, so nothing that takes long is imported beside them: neither PyTorch nor Ray.
    """

    module: str
    job: str
    help: str
    ray: bool = False  # whether it may start one
    #: The module of the options, where it is neither `config` beside `job` nor the one module of the verb.
    options: str | None = None

    def model(self) -> type[BaseModel]:
        """The class of the options."""
        room, _, name = self.module.rpartition(".")
        options = self.options or (f"{room}.config" if name == "job" else self.module)
        return getattr(importlib.import_module(options), self.job)

    def load(self) -> tuple[Run, Describe]:
        """What runs a job, and what describes it for a dry run."""
        module = importlib.import_module(self.module)
        return module.run, module.describe


VERBS = {
    "assign": Verb("rayjobs.assign.job", "AssignJob", "E-step: find each image's noise, over a pair set", ray=True),
    "look": Verb("rayjobs.look.job", "LookJob", "see a pair set before anything is trained: pictures, captions, sizes"),
    "invert": Verb("rayjobs.invert.job", "InvertJob", "E-step for one image, with pictures and curves"),
    "train": Verb("rayjobs.train.job", "TrainJob", "M-step: fine-tune on matched (or random) noise", ray=True),
    "em": Verb("rayjobs.em.job", "EmJob", "alternate E-step and M-step, evaluate, report", ray=True),
    "sweep": Verb(
        "rayjobs.sweep.job", "SweepJob", "try settings: target fit against drift, with the Pareto front", ray=True
    ),
    "evaluate": Verb("rayjobs.evaluate.job", "EvaluateJob", "held-out metrics of one or more models", ray=True),
    "reward": Verb(
        "rayjobs.reward.job", "RewardJob", "find the noise whose image scores highest, for one prompt or many", ray=True
    ),
    "train-gan": Verb(
        "rayjobs.train_gan.job", "TrainGanJob", "a small one-step generator of labelled images, from MNIST on", ray=True
    ),
    "generate": Verb("rayjobs.generate.job", "GenerateJob", "images from a model folder"),
    "export": Verb(
        "rayjobs.assign.export_reference",
        "ExportJob",
        "assignments as the reference's folder of noise files",
        options="rayjobs.assign.reference_config",
    ),
    "import": Verb(
        "rayjobs.assign.import_reference",
        "ImportJob",
        "the reference's folder of noise files as assignments",
        options="rayjobs.assign.reference_config",
    ),
    "submit": Verb("rayjobs.submit", "SubmitJob", "run one of these on a cluster, and follow it"),
    "download": Verb("rayjobs.download.job", "DownloadJob", "models of the catalogue, into models/"),
    "verify-noise": Verb("rayjobs.verify_noise.job", "VerifyNoiseJob", "the Gaussian statistics of rotated noise"),
}
