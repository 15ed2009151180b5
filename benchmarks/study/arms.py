"""The arms of the study: what is trained from a base model on one draw of pairs, and how the models are judged.

Every arm may spend the same generator evaluations of a row, those of its E-steps, of its searches while training and of its
preserve term among them; what an update costs decides how many there are. Along the way each keeps the model that has had as many
updates as the arm with the fewest. Every step is a job of `rayjobs`, which is done at once where it has been done. They work in
this process: workers of their own take longer to start than a step to run.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.study.laboratory import PAIRS, Laboratory
from ortho_core.records.assignments import Assignments
from rayjobs.assign.config import AssignSettings
from rayjobs.em import job as em
from rayjobs.em.config import EmJob
from rayjobs.evaluate import job as evaluate
from rayjobs.evaluate.config import EvaluateJob
from rayjobs.train import job as train
from rayjobs.train.config import TrainJob, TrainSettings

#: Evaluations that a preserve row costs: forward and backward of the model, a forward of the frozen one.
PRESERVE_COST = 1 + 1 / 3


@dataclass(frozen=True)
class Arm:
    """One way to teach a model its pairs: what differs from the protocol."""

    title: str
    train: Mapping[str, Any] = field(default_factory=dict)
    #: E-steps, each before as many updates; none: direct SFT.
    cycles: int = 1
    warm: bool = True
    #: Evaluations of an image in an E-step; none: the protocol's.
    steps: int | None = None
    #: Whether the preserve rows have prompts that no pair has.
    elsewhere: bool = False

    @property
    def each(self) -> float:
        """Evaluations of a row in one update."""
        settings = TrainSettings(**self.train)
        preserved = PRESERVE_COST if settings.preserves else 0.0
        return 1 + preserved + (int(settings.match_steps) if settings.noise == "online" else 0)

    def epochs(self, evaluations: float, steps: int) -> int:
        """Epochs of one cycle: what is left of the evaluations after the E-steps, of at most `steps` each."""
        left = evaluations - self.cycles * (steps if self.steps is None else self.steps)
        return max(1, math.floor(left / self.each / max(1, self.cycles)))


NO_PRESERVE = {"preserve_latent_weight": 0.0}
RANDOM = {"noise": "random"}


def _online(steps: int, refresh: float = 1.0, keep: str = "latest", **others: Any) -> dict[str, Any]:
    given = {"noise": "online", "match_steps": str(steps), "match_refresh": refresh, "match_keep": keep}
    return {**NO_PRESERVE, **given, **others}


ARMS: dict[str, Arm] = {
    "direct": Arm("direct SFT", {**RANDOM, **NO_PRESERVE}, cycles=0),
    "direct_preserve": Arm("direct SFT, preserve 0.1", RANDOM, cycles=0),
    "matched": Arm("matched SFT", NO_PRESERVE),
    "matched_preserve": Arm("matched SFT, preserve 0.1"),
    "centered": Arm("matched SFT, centred", {**NO_PRESERVE, "center_noise": True}),
    "em_warm": Arm("EM, 4 cycles, warm", NO_PRESERVE, cycles=4),
    "em_cold": Arm("EM, 4 cycles, cold", NO_PRESERVE, cycles=4, warm=False),
    "online_2": Arm("online, fresh, 2 evaluations", _online(2), cycles=0),
    "online_4": Arm("online, fresh, 4 evaluations", _online(4), cycles=0),
    "online_8": Arm("online, fresh, 8 evaluations", _online(8), cycles=0),
    "kept_02": Arm("online, kept, r = 0.2, 2 evaluations", _online(2, 0.2), cycles=0),
    "kept_05": Arm("online, kept, r = 0.5, 2 evaluations", _online(2, 0.5), cycles=0),
    "kept_after_2": Arm("the same, r = 0.2, after an E-step of 2", _online(2, 0.2), steps=2),
    "kept_after_8": Arm("the same, r = 0.2, after an E-step of 8", _online(2, 0.2), steps=8),
    "assigned_05": Arm("online, assigned noise, r = 0.5, 2 evaluations", _online(2, 0.5, "assigned")),
    "kept_elsewhere": Arm(
        "online, kept, r = 0.2, preserve 0.1 at other prompts",
        {**_online(2, 0.2), "preserve_latent_weight": 0.1},
        cycles=0,
        elsewhere=True,
    ),
    "kept_differences": Arm(
        "online, kept, r = 0.2, differences 0.5",
        {**_online(2, 0.2), "preserve_latent_weight": 0.5, "preserve_differences": True},
        cycles=0,
    ),
    "matched_elsewhere": Arm("matched SFT, preserve 0.1 at other prompts", elsewhere=True),
    "direct_elsewhere": Arm("direct SFT, preserve 0.1 at other prompts", RANDOM, cycles=0, elsewhere=True),
    "kept_02_4": Arm("online, kept, r = 0.2, 4 evaluations", _online(4, 0.2), cycles=0),
    "kept_01": Arm("online, kept, r = 0.1, 2 evaluations", _online(2, 0.1), cycles=0),
    "kept_centered": Arm(
        "online, kept, r = 0.2, after a centred E-step of 8", _online(2, 0.2, center_noise=True), steps=8
    ),
    "kept_preserve": Arm(
        "online, kept, r = 0.2, preserve 0.1", {**_online(2, 0.2), "preserve_latent_weight": 0.1}, cycles=0
    ),
}


@dataclass(frozen=True)
class Protocol:
    """What is the same in all arms."""

    #: Generator evaluations of a row, over all of an arm.
    evaluations: float = 64.0
    batch_size: int = 32
    lr: float = 5e-4
    #: Evaluations of an image in an E-step, and of a held-out image when models are judged.
    steps: int = 8
    patch_size: int = 2

    @cached_property
    def fewest(self) -> int:
        """Epochs of the arm that has the fewest, which all others are compared at too."""
        return min(arm.epochs(self.evaluations, self.steps) * max(1, arm.cycles) for arm in ARMS.values())

    def assign(self, seed: int, **others: Any) -> AssignSettings:
        given = {
            "steps": self.steps,
            "patch_size": self.patch_size,
            "seed": seed,
            "slots": 32,
            "rows_per_shard": PAIRS,
            "workers": "0",
            "report": False,
        }
        return AssignSettings(**(given | others))

    def train(self, seed: int, **others: Any) -> TrainSettings:
        given = {
            "batch_size": self.batch_size,
            "lr": self.lr,
            "save_every": 0,
            "seed": seed,
            "tensorboard": False,
            "num_workers": 0,
        }
        return TrainSettings(**(given | others))


@dataclass(frozen=True)
class Runs:
    """The arms of one seed under one protocol."""

    lab: Laboratory
    protocol: Protocol
    seed: int

    @property
    def folder(self) -> Path:
        return self.lab.work / f"seed-{self.seed}"

    def run(self, name: str) -> dict[str, Path]:
        """Train an arm. Its models: at the evaluations of all, and, where it has no cycles, `NAME_equal`, at equal updates."""
        arm, protocol, out = ARMS[name], self.protocol, self.folder / name
        epochs = arm.epochs(protocol.evaluations, protocol.steps)
        elsewhere = {"preserve_prompts": self.lab.preserve_prompts()} if arm.elsewhere else {}
        settings = protocol.train(self.seed, **arm.train, **elsewhere, epochs=epochs)
        if arm.cycles > 1:
            em.run(self._em(arm, out, settings))
            return {name: last_of(out, arm.cycles)}
        settings = settings.model_copy(update={"save_every": protocol.fewest})
        if arm.cycles:
            em.run(self._em(arm, out, settings))
            trained = out / "cycle_01" / "train"
        else:
            train.run(
                em.build(TrainJob, settings, pairs=str(self.lab.pairs(self.seed)), model=self.lab.base(), out=out)
            )
            trained = out
        return {name: trained / "checkpoint-final", f"{name}_equal": at(trained, protocol.fewest)}

    def assignments(self, name: str) -> Path:
        """The last E-step of an arm that has one."""
        return self.folder / name / f"cycle_{ARMS[name].cycles:02d}" / "assignments"

    def _em(self, arm: Arm, out: Path, settings: TrainSettings) -> EmJob:
        searched = {} if arm.steps is None else {"steps": arm.steps}
        return EmJob(
            pairs=str(self.lab.pairs(self.seed)),
            model=self.lab.base(),
            work_dir=out,
            assignments_cache=self.lab.work / "assignments",
            heldout="none",
            cycles=arm.cycles,
            warm_start=arm.warm,
            assign=self.protocol.assign(self.seed, **searched),
            train=settings,
        )

    def judged(self, name: str) -> Path:
        """Where an arm's evaluation is."""
        return self.folder / name / "evaluation"

    def judge(self, name: str) -> dict[str, Path]:
        """Train an arm and judge its models; returns them, the base first."""
        base = {"base": self.lab.base()}
        first = self.lab.work / "judged-base"
        judge(self.lab, self.protocol, base, first)
        models = base | self.run(name)
        judge(self.lab, self.protocol, models, self.judged(name), base_from=first)
        return models


def at(run: Path, epoch: int) -> Path:
    return run / f"checkpoint-epoch-{epoch:03d}"


def last_of(work: Path, cycle: int) -> Path:
    return work / f"cycle_{cycle:02d}" / "train" / "checkpoint-final"


def mean_of(assignments: Path, column: str) -> float:
    """Of a column of assignments, such as the evaluations that each row took."""
    made = Assignments(assignments)
    return fmean(row[column] for row in made.rows(range(len(made)), [column]))


def judge(
    lab: Laboratory, protocol: Protocol, models: dict[str, Path], out: Path, base_from: Path | None = None
) -> None:
    """`ortho evaluate` on the set's held-out pairs, with its own judge."""
    job = EvaluateJob(
        model=models,
        pairs=str(lab.heldout()),
        out=out,
        patch_size=protocol.patch_size,
        rows=lab.judged,
        steps=protocol.steps,
        batch_size=32,
        workers="0",
        rows_per_shard=lab.judged,
        features=str(lab.judge()),
        rewards=None,
        base_from=base_from,
    )
    evaluate.run(job)
