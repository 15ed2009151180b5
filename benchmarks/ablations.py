"""The effect of each choice: `python -m benchmarks.ablations --data mnist --root DIR --work runs/study`.

Each variant changes one setting of the protocol of `benchmarks.matched_vs_direct` (one cycle, twice its updates, preserve weight
0.1), with the same pairs and judge, over three seeds. The same command again resumes; `--tables` prints the results so far.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.study.arms import PRESERVE, Protocol, judge, mean_of
from benchmarks.study.laboratory import Laboratory, laboratory, study_parser
from benchmarks.study.mismatch import LAWS, kids
from benchmarks.study.tables import PLAIN, Estimate, Judged, table
from rayjobs.em import job as em
from rayjobs.em.config import EmJob
from rayjobs.em.steps import build
from rayjobs.train import job as train
from rayjobs.train.config import TrainJob
from rayjobs.verb.console import say
from rayjobs.verb.session import ray_session

PROTOCOL, EPOCHS = Protocol(batch_size=32, lr=3e-4), 24
#: The M-step of the protocol: the noise of one cycle, not centred, and the preserve term at the prompts of the pairs.
TRAIN = {
    "epochs": EPOCHS,
    "save_every": 0,
    **PRESERVE,
    "preserve_batch_size": PROTOCOL.batch_size,
    "center_noise": False,
}


@dataclass(frozen=True)
class Variant:
    """The settings that differ from the protocol."""

    assign: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    #: Two cycles of half the updates each, the second with a warm or a cold start; None: one cycle.
    warm: bool | None = None


VARIANTS: dict[str, Variant] = {
    "the protocol: p = 2, 8 evaluations": Variant(),
    "direct SFT": Variant(train={"noise": "random"}),
    "p = 1": Variant({"patch_size": 1}),
    "p = 4": Variant({"patch_size": 4}),
    "p = 8": Variant({"patch_size": 8}),
    "1 evaluation: one random noise per image, kept": Variant({"steps": 1}),
    "2 evaluations": Variant({"steps": 2}),
    "4 evaluations": Variant({"steps": 4}),
    "16 evaluations": Variant({"steps": 16}),
    "40 evaluations": Variant({"steps": 40, "patience": 0}),
    "best of 16, no search": Variant({"candidates": 16, "steps": 1}),
    "best of 64, no search": Variant({"candidates": 64, "steps": 1}),
    "best of 16, then 8 evaluations": Variant({"candidates": 16}),
    "regions 2 × 2": Variant({"regions": 2}),
    "regions 4 × 4": Variant({"regions": 4}),
    "free, prior 2": Variant({"transform": "free", "prior_weight": 2.0}),
    "free, prior 0.5": Variant({"transform": "free", "prior_weight": 0.5}),
    "free, prior 0.1": Variant({"transform": "free", "prior_weight": 0.1}),
    "free, no prior": Variant({"transform": "free", "prior_weight": 0.0}),
    "two cycles of half the updates, warm start": Variant(warm=True),
    "two cycles of half the updates, cold start": Variant(warm=False),
    "preserve 0": Variant(train={"preserve_latent_weight": 0.0}),
    "preserve 0.03": Variant(train={"preserve_latent_weight": 0.03}),
    "preserve 0.3": Variant(train={"preserve_latent_weight": 0.3}),
    "preserve 1": Variant(train={"preserve_latent_weight": 1.0}),
    "direct SFT, preserve 0": Variant(train={"noise": "random", "preserve_latent_weight": 0.0}),
    "direct SFT, preserve 0.3": Variant(train={"noise": "random", "preserve_latent_weight": 0.3}),
    "direct SFT, preserve 1": Variant(train={"noise": "random", "preserve_latent_weight": 1.0}),
    "learning rate 1e-4": Variant(train={"lr": 1e-4}),
    "learning rate 1e-3": Variant(train={"lr": 1e-3}),
    "direct SFT, learning rate 1e-4": Variant(train={"noise": "random", "lr": 1e-4}),
    "direct SFT, learning rate 1e-3": Variant(train={"noise": "random", "lr": 1e-3}),
}


@dataclass(frozen=True)
class Trial:
    """One variant at one seed."""

    lab: Laboratory
    seed: int
    number: int

    @property
    def title(self) -> str:
        return list(VARIANTS)[self.number]

    @property
    def variant(self) -> Variant:
        return VARIANTS[self.title]

    @property
    def is_matched(self) -> bool:
        return self.variant.train.get("noise") != "random"

    @property
    def key(self) -> str:
        """A name for evaluations and picture files."""
        return f"v{self.number:02d}"

    @property
    def folder(self) -> Path:
        return self.lab.work / "ablations" / f"seed-{self.seed}" / self.key

    @property
    def cycles(self) -> int:
        return 1 if self.variant.warm is None else 2

    @property
    def result(self) -> tuple[Path, Path]:
        """The model, and the assignments that it was trained on."""
        if not self.is_matched:
            return self.folder / "checkpoint-final", Trial(self.lab, self.seed, 0).result[1]
        last = self.folder / f"cycle_{self.cycles:02d}"
        return last / "train" / "checkpoint-final", last / "assignments"

    def run(self) -> None:
        base, variant = self.lab.base(), self.variant
        tuned = PROTOCOL.train(self.seed, **{**TRAIN, "epochs": EPOCHS // self.cycles, **variant.train})
        if not self.is_matched:
            train.run(build(TrainJob, tuned, assignments=str(self.result[1]), model=base, out=self.folder))
            return
        job = EmJob(
            pairs=str(self.lab.pairs(self.seed)),
            model=base,
            heldout="none",
            work_dir=self.folder,
            assignments_cache=self.lab.work / "assignments",
            cycles=self.cycles,
            warm_start=variant.warm is not False,
            assign=PROTOCOL.assign(self.seed, **variant.assign),
            train=tuned,
        )
        em.run(job)


def trials(lab: Laboratory, seed: int) -> list[Trial]:
    return [Trial(lab, seed, number) for number in range(len(VARIANTS))]


def run(lab: Laboratory, seed: int) -> None:
    """Train and judge every variant at one seed."""
    models = {"base": lab.base()}
    for trial in trials(lab, seed):
        say(f"ablations: {lab.work.name}, seed {seed}: {trial.title}")
        trial.run()
        models[trial.key] = trial.result[0]
    judge(lab, PROTOCOL, models, evaluation_of(lab, seed))


def evaluation_of(lab: Laboratory, seed: int) -> Path:
    return lab.work / "ablations" / f"seed-{seed}" / "evaluation"


def show(lab: Laboratory, seeds: list[int]) -> None:
    """Print the results as Markdown."""
    judged = Judged(tuple({"all": evaluation_of(lab, seed)} for seed in seeds))
    titles = {"base": "base"} | {trial.key: trial.title for trial in trials(lab, seeds[0])}
    print(table(judged, titles, PLAIN))
    print(
        "\n| | evaluations | loss of the assignment | KID at N(0, I) | at the Gaussian fitted to it | largest departure |"
    )
    print("|---|---|---|---|---|---|")
    runs = {seed: [trial for trial in trials(lab, seed) if trial.is_matched] for seed in seeds}
    found = {seed: kids(lab, seed, {t.key: t.result for t in matched}) for seed, matched in runs.items()}
    for i, trial in enumerate(runs[seeds[0]]):
        made = [runs[seed][i].result[1] for seed in seeds]
        plain, fitted = (Estimate.of([found[seed][trial.key][law] for seed in seeds]) for law in (LAWS[0], LAWS[2]))
        most = next(iter(found[seeds[0]][trial.key]["departures"].items()))
        cost, loss = (fmean(mean_of(folder, column) for folder in made) for column in ("evaluations", "loss"))
        print(f"| {trial.title} | {cost:.1f} | {loss:.4f} | {plain} | {fitted} | {most[0]}, {most[1]:.0f} |")


def main() -> None:
    parser = study_parser(__doc__)
    parser.add_argument("--tables", action="store_true", help="print the tables of the results so far")
    args = parser.parse_args()
    lab = laboratory(args)
    if args.tables:
        show(lab, args.seeds)
        return
    with ray_session():
        for seed in args.seeds:
            run(lab, seed)


if __name__ == "__main__":
    main()
