"""Which verbs there are: one line for each. None of their modules is imported before it is run."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

Run = Callable[[Any], int]
Describe = Callable[[Any], Mapping[str, object]]


@dataclass(frozen=True)
class Verb:
    module: str
    job: str
    help: str
    ray: bool = False  # whether it may start one

    def load(self) -> tuple[type[BaseModel], Run, Describe]:
        module = importlib.import_module(self.module)
        return getattr(module, self.job), module.run, module.describe


VERBS = {
    "assign": Verb("rayjobs.assign.job", "AssignJob", "E-step: find each image's noise, over a pair set", ray=True),
    "look": Verb("rayjobs.look.job", "LookJob", "see a pair set before anything is trained: pictures, captions, sizes"),
    "invert": Verb("rayjobs.invert", "InvertJob", "E-step for one image, with pictures and curves"),
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
        "rayjobs.assign.export_reference", "ExportJob", "assignments as the reference's folder of noise files"
    ),
    "import": Verb(
        "rayjobs.assign.import_reference", "ImportJob", "the reference's folder of noise files as assignments"
    ),
    "submit": Verb("rayjobs.submit", "SubmitJob", "run one of these on a cluster, and follow it"),
    "download": Verb("rayjobs.download.job", "DownloadJob", "models of the catalogue, into models/"),
    "verify-noise": Verb("rayjobs.verify_noise", "VerifyNoiseJob", "the Gaussian statistics of rotated noise"),
}
