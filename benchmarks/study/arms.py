"""The arms of the study: what is trained from a base model on one draw of pairs, and how they are judged.

Direct SFT (random noise), matched SFT (the first E-step's noise, trained on for long), EM (noise assigned again in each
cycle) and EM on centred noise (the mean of the assigned noise taken off it before training), all at the same updates and, for
direct SFT, also at the same generator evaluations as EM, those of its E-steps included. Every step is a job of `rayjobs`, which
is done at once where it has been done. They work in this process: workers of their own take longer to start than a step to run.
"""

import json
import math
from dataclasses import dataclass
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
#: Direct SFT keeps a checkpoint every so many epochs; equal cost is rounded up to them.
EVERY = 4


@dataclass(frozen=True)
class Protocol:
    """What is the same in all arms."""

    cycles: int = 4
    #: Epochs of one cycle's M-step.
    epochs: int = 12
    batch_size: int = 32
    lr: float = 3e-4
    preserve: float = 0.1
    #: Evaluations of an image in an E-step, and of a held-out image when models are judged.
    steps: int = 8
    patch_size: int = 2

    @property
    def updates(self) -> int:
        """Of one cycle's M-step."""
        return self.epochs * (PAIRS // self.batch_size)

    def assign(self, seed: int, **others: Any) -> AssignSettings:
        given = {
            "steps": self.steps,
            "patch_size": self.patch_size,
            "seed": seed,
            "slots": 32,
            "rows_per_shard": PAIRS,
            "workers": "0",
        }
        return AssignSettings(**(given | others))

    def train(self, seed: int, **others: Any) -> TrainSettings:
        given = {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "lr": self.lr,
            "preserve_latent_weight": self.preserve,
            "save_every": EVERY,
            "seed": seed,
            "tensorboard": False,
            "num_workers": 0,
        }
        return TrainSettings(**(given | others))

    def evaluations(self, epochs: int) -> float:
        """Generator evaluations of so many epochs of training, per row."""
        return epochs * (1 + (PRESERVE_COST if self.preserve else 0))

    def epochs_worth(self, evaluations: float) -> int:
        """Epochs of training that cost at least as much, per row."""
        return EVERY * math.ceil(evaluations / self.evaluations(EVERY))


@dataclass(frozen=True)
class Runs:
    """The arms of one seed under one protocol."""

    lab: Laboratory
    protocol: Protocol
    seed: int

    @property
    def folder(self) -> Path:
        return self.lab.work / f"seed-{self.seed}" / f"preserve-{self.protocol.preserve:g}"

    def em(self, centered: bool = False) -> Path:
        """EM's folder, with the models of all cycles; `centered`: each M-step takes the noise's mean off it."""
        work = self.folder / ("centered" if centered else "em")
        job = EmJob(
            pairs=str(self.lab.pairs(self.seed)),
            model=self.lab.base(),
            work_dir=work,
            assignments_cache=self.lab.work / "assignments",
            cycles=self.protocol.cycles,
            assign=self.protocol.assign(self.seed),
            train=self.protocol.train(self.seed, center_noise=centered),
        )
        em.run(job)
        return work

    def straight(self, noise: str, epochs: int) -> Path:
        """Training in one go on the first cycle's assignments (matched), or on their targets at random noise."""
        out = self.folder / noise
        settings = self.protocol.train(self.seed, noise=noise, epochs=epochs)
        first = self.folder / "em" / "cycle_01" / "assignments"
        train.run(em.build(TrainJob, settings, assignments=str(first), model=self.lab.base(), out=out))
        return out

    def models(self) -> dict[str, Path]:
        """Every model that is judged; `direct_cost_n` has the evaluations of EM's n cycles, E-steps included."""
        protocol, work = self.protocol, self.em()
        cycles = range(1, protocol.cycles + 1)
        spent = [mean_of(work / f"cycle_{n:02d}" / "assignments", "evaluations") for n in cycles]
        costs = {n: protocol.evaluations(protocol.epochs * n) + sum(spent[:n]) for n in (1, protocol.cycles)}
        equal = {n: protocol.epochs_worth(cost) for n, cost in costs.items()}
        direct = self.straight("random", max(equal.values()))
        matched = self.straight("matched", protocol.epochs * protocol.cycles)
        shown = [n for n in cycles if n & (n - 1) == 0]  # 1, 2, 4: judging is what takes longest
        found = {"base": self.lab.base()}
        found |= {f"direct_{n}": at(direct, protocol.epochs * n) for n in shown}
        found |= {f"direct_cost_{n}": at(direct, epochs) for n, epochs in equal.items()}
        found |= {f"matched_{n}": at(matched, protocol.epochs * n) for n in shown}
        found |= {f"em_{n}": last_of(work, n) for n in cycles if n > 1}
        centered = self.em(centered=True)
        found |= {f"centered_{n}": last_of(centered, n) for n in shown}
        (self.folder / "cost.json").write_text(
            json.dumps({"e_step_evaluations_per_row": spent, "epochs_at_equal_cost": equal}, indent=1) + "\n"
        )
        return found

    def judge(self) -> Path:
        """The evaluation of them all."""
        first = self.lab.work / "judged-base"
        judge(self.lab, self.protocol, {"base": self.lab.base()}, first)
        out = self.folder / "evaluation"
        judge(self.lab, self.protocol, self.models(), out, base_from=first)
        return out


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
