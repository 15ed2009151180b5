"""The arms of the study: what is trained from a base model on one draw of pairs, and how the models are judged.

Every arm may spend the same generator evaluations of a row, those of its E-steps, of its searches while training and of its
preserve term among them; what an update costs decides how many there are. Along the way each keeps the model that has had as many
updates as EM. Every step is a job of `rayjobs`, which is done at once where it has been done. They work in this process: workers
of their own take longer to start than a step to run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.study.laboratory import PAIRS, Laboratory
from ortho_core.records.assignments import Assignments
from rayjobs.assign.config import AssignSettings
from rayjobs.em import job as em
from rayjobs.em.config import EmJob
from rayjobs.em.steps import build
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

    def each(self, batch_size: int) -> float:
        """Evaluations of a row in one update of so many rows."""
        settings = TrainSettings(**{"batch_size": batch_size, **self.train})
        preserved = PRESERVE_COST * settings.preserve_rows / batch_size
        return 1 + preserved + (int(settings.match_steps) if settings.noise == "online" else 0)

    def epochs(self, protocol: "Protocol") -> int:
        """Epochs of one cycle: what is left of the evaluations after the E-steps."""
        steps = protocol.steps if self.steps is None else self.steps
        left = protocol.evaluations - self.cycles * steps
        return max(1, math.floor(left / self.each(protocol.batch_size) / max(1, self.cycles)))


PRESERVE = {"preserve_latent_weight": 0.1, "preserve_batch_size": 16, "preserve_prompts": "training"}
NO_PRESERVE = {"preserve_latent_weight": 0.0}
#: Rows of the preserve term where it has prompts of its own.
ELSEWHERE = {"preserve_latent_weight": 1.0, "preserve_batch_size": 4}
#: As the M-step has it by default: at prompts of all kinds, of which no pair of the study has a word but colours.
GENERAL = {**ELSEWHERE, "preserve_prompts": "elsewhere"}
DIFFERENCES = {**PRESERVE, "preserve_latent_weight": 0.5, "preserve_differences": True}
RANDOM = {"noise": "random"}
LEANING = {"center_noise": False}
LORA = {"lora_rank": 8, "lr": 4e-3}
#: The cycles of `ortho em` as it is by default, and evaluations of an image in each of their E-steps.
CYCLES, SHORT = 4, 4


def _online(steps: int, refresh: float = 1.0, **others: Any) -> dict[str, Any]:
    return {
        **NO_PRESERVE,
        "noise": "online",
        "match_steps": str(steps),
        "match_refresh": refresh,
        "match_keep": "latest",
        **others,
    }


def _em(title: str, train: Mapping[str, Any], elsewhere: bool = False, steps: int = SHORT, warm: bool = False) -> Arm:
    return Arm(title, train, CYCLES, warm, steps, elsewhere)


ARMS: dict[str, Arm] = {
    "direct": Arm("direct SFT", {**RANDOM, **NO_PRESERVE}, cycles=0),
    # A search of one evaluation finds nothing: a fixed coupling without any matching.
    "kept": Arm("one random noise of each row, kept", {**NO_PRESERVE, **LEANING}, steps=1),
    "direct_preserve": Arm("direct SFT, preserve 0.1", {**RANDOM, **PRESERVE}, cycles=0),
    "direct_elsewhere": Arm(
        "direct SFT, preserve 1 at other prompts", {**RANDOM, **ELSEWHERE}, cycles=0, elsewhere=True
    ),
    "matched_preserve": Arm("one E-step, preserve 0.1", {**PRESERVE, **LEANING}),
    "matched": Arm("one E-step", {**NO_PRESERVE, **LEANING}),
    "centered": Arm("one E-step, centred", NO_PRESERVE),
    "em_leaning_warm": _em("EM, warm starts, not centred", {**NO_PRESERVE, **LEANING}, warm=True),
    "em_leaning": _em("EM, not centred", {**NO_PRESERVE, **LEANING}),
    "em_warm": _em("EM, warm starts", NO_PRESERVE, warm=True),
    "em": _em("EM, held nowhere", NO_PRESERVE),
    "em_two": Arm("the same, two cycles", NO_PRESERVE, 2, False, SHORT),
    "em_2": _em("the same, E-steps of 2", NO_PRESERVE, steps=2),
    "em_8": _em("the same, E-steps of 8", NO_PRESERVE, steps=8),
    "em_preserve": _em("EM, held at the training prompts", PRESERVE),
    "em_differences": _em("EM, differences held there", DIFFERENCES),
    "em_elsewhere": _em("EM, held at other prompts", ELSEWHERE, elsewhere=True),
    "em_general": _em("EM, as by default", GENERAL),
    "online_2": Arm("online, fresh, 2 evaluations", _online(2), cycles=0),
    "online_4": Arm("online, fresh, 4 evaluations", _online(4), cycles=0),
    "online_8": Arm("online, fresh, 8 evaluations", _online(8), cycles=0),
    "kept_01": Arm("online, kept, r = 0.1, 2 evaluations", _online(2, 0.1), cycles=0),
    "kept_02": Arm("online, kept, r = 0.2, 2 evaluations", _online(2, 0.2), cycles=0),
    "kept_05": Arm("online, kept, r = 0.5, 2 evaluations", _online(2, 0.5), cycles=0),
    "kept_after_8": Arm("the same, r = 0.2, after a centred E-step of 8", _online(2, 0.2)),
    "kept_preserve": Arm("online, kept, r = 0.2, preserve 0.1", _online(2, 0.2, **PRESERVE), cycles=0),
    "kept_differences": Arm("online, kept, r = 0.2, differences 0.5", _online(2, 0.2, **DIFFERENCES), cycles=0),
    "kept_elsewhere": Arm(
        "online, kept, r = 0.2, preserve 1 at other prompts", _online(2, 0.2, **ELSEWHERE), cycles=0, elsewhere=True
    ),
    "direct_lora": Arm("LoRA: direct SFT", {**LORA, **RANDOM, **NO_PRESERVE}, cycles=0),
    "em_lora": _em("LoRA: EM", {**LORA, **NO_PRESERVE}),
    "em_lora_preserve": _em("LoRA: EM, preserve 0.1", {**LORA, **PRESERVE}),
    "em_lora_elsewhere": _em("LoRA: EM, preserve 1 at other prompts", {**LORA, **ELSEWHERE}, elsewhere=True),
}


@dataclass(frozen=True)
class Protocol:
    """What is the same in all arms."""

    #: Generator evaluations of a row, over all of an arm.
    evaluations: float = 64.0
    batch_size: int = 16
    lr: float = 1e-3
    #: Evaluations of an image in an E-step, and of a held-out image when models are judged.
    steps: int = 8
    patch_size: int = 2

    @property
    def equal(self) -> int:
        """Epochs of EM, all cycles together: arms that have more of them are looked at there too."""
        return CYCLES * ARMS["em"].epochs(self)

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
        """Train an arm. Its models: at the evaluations of all, and `NAME_equal`, at EM's updates, where these are fewer."""
        arm, protocol, out = ARMS[name], self.protocol, self.folder / name
        epochs = arm.epochs(protocol)
        later = arm.cycles <= 1 and epochs > protocol.equal
        settings = protocol.train(
            self.seed,
            **arm.train,
            epochs=epochs,
            save_every=protocol.equal if later else 0,
            **({"preserve_prompts": self.lab.preserve_prompts()} if arm.elsewhere else {}),
        )
        if arm.cycles:
            em.run(self._em(arm, out, settings))
        else:
            train.run(build(TrainJob, settings, pairs=str(self.lab.pairs(self.seed)), model=self.lab.base(), out=out))
        trained = self.final(name)
        models = {name: trained}
        return models | (
            {f"{name}_equal": trained.with_name(f"checkpoint-epoch-{protocol.equal:03d}")} if later else {}
        )

    def final(self, name: str) -> Path:
        """The model that an arm ends with."""
        cycles = ARMS[name].cycles
        trained = self.folder / name / (f"cycle_{cycles:02d}/train" if cycles else "")
        return trained / "checkpoint-final"

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

    def judge_more(self, names: Sequence[str], rows: int) -> Path:
        """Arms that are trained, and the base, at plain noise on so many other held-out pairs; returns the evaluation."""
        models = {"base": self.lab.base()} | {name: self.final(name) for name in names}
        out = self.folder / f"more-{rows}"
        judge(replace(self.lab, judged=rows), replace(self.protocol, steps=1), models, out, pairs=self.lab.more(rows))
        return out

    def judge(self, name: str) -> dict[str, Path]:
        """Train an arm and judge its models; returns them, the base first."""
        base = {"base": self.lab.base()}
        first = self.lab.work / "judged-base"
        judge(self.lab, self.protocol, base, first)
        models = base | self.run(name)
        judge(self.lab, self.protocol, models, self.judged(name), base_from=first)
        return models


def mean_of(assignments: Path, column: str) -> float:
    """Of a column of assignments, such as the evaluations that each row took."""
    made = Assignments(assignments)
    return fmean(row[column] for row in made.rows(range(len(made)), [column]))


def judge(
    lab: Laboratory,
    protocol: Protocol,
    models: dict[str, Path],
    out: Path,
    base_from: Path | None = None,
    pairs: Path | None = None,
) -> None:
    """`ortho evaluate` on the set's held-out pairs, with its own judge."""
    job = EvaluateJob(
        model=models,
        pairs=str(pairs or lab.heldout()),
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
