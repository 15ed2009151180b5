"""The options of `ortho sweep`: the configuration of its trials, the varied fields, and the search over them."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, JsonValue

from ortho_core.evaluation.metrics import metric
from ortho_core.marks import conduct, decides
from ortho_core.storage.location import LocalPath
from rayjobs.em.config import EmJob, EStepSettings
from rayjobs.evaluate.config import EvaluateSettings
from rayjobs.pool.config import span
from rayjobs.train.config import TrainSettings
from rayjobs.training.config import TrackerSettings
from rayjobs.verb.options import Open


class SweepAssignSettings(EStepSettings):
    """The E-step of a trial; it has no report by default."""

    report: bool = conduct(
        False,
        description="write report.html, with pictures and losses, beside the assignments of each trial's last cycle",
    )


class SweepTrainSettings(TrainSettings):
    """The M-step of a trial; it keeps fewer models by default."""

    save_every: int = decides(0, ge=0, description="epochs between saved checkpoint-epoch-NNN (0: only best and final)")


class SweepEvaluateSettings(EvaluateSettings):
    """The evaluation of a trial; one worker by default, since other trials run beside it."""

    workers: Annotated[str, BeforeValidator(span)] = conduct(
        "1", description="actors that judge one trial, N or LEAST:MOST; each holds one model at a time and all judges"
    )


class SweepJob(EmJob, TrackerSettings):
    """Try several values of configuration fields: target fit against drift, with the Pareto front."""

    cycles: int = decides(1, ge=1, description="how often E-step and M-step alternate in a trial")
    baseline: bool = decides(
        True, description="also train direct SFT on random noise, with the fields that are not varied, to compare"
    )
    validate_on_heldout: bool = conduct(
        False, description="also assign the held-out pairs with the first model, and validate every M-step on them"
    )
    assign: SweepAssignSettings = SweepAssignSettings()
    train: SweepTrainSettings = SweepTrainSettings()
    evaluate: SweepEvaluateSettings = SweepEvaluateSettings()
    sweep: Annotated[dict[str, JsonValue], Open()] = conduct(
        {},
        description="values of any field: A,B,C, or a range LOW:HIGH or log:LOW:HIGH, e.g. --sweep.assign.patch-size 2,4",
    )
    space: LocalPath | None = conduct(
        None, description="YAML file of fields with their values or ranges, as in --sweep"
    )
    search: Literal["grid", "random", "optuna"] = conduct(
        "grid",
        description="grid: every combination; random: random points; optuna: searches the Pareto front (needs the extra optuna)",
    )
    samples: int = conduct(10, ge=1, description="trials of a random or Optuna search")
    search_seed: int = conduct(0, ge=0, description="seed of the random and Optuna searches")
    metric: str = conduct(
        "latent_mse", description="metric of target fit: latent_mse, psnr, kid, fid, cmmd, reward_NAME, ..."
    )
    max_drift: float | None = conduct(
        None, gt=0, description="choose the trial with the best fit among those with at most this drift"
    )
    early_stopping: Literal["none", "asha"] = decides(
        "none",
        description="asha: end trials early that are worse on held-out rows than others after the same number of epochs",
    )
    grace_epochs: int = decides(1, ge=1, description="epochs before which no trial is ended")
    reduction_factor: int = decides(3, ge=2, description="at each rung of ASHA, one of this many trials continues")
    max_concurrent: int = conduct(
        0, ge=0, description="trials at the same time (0: as many as the cluster has room for)"
    )

    @property
    def watched(self) -> bool:
        """Whether trials are validated on the held-out rows while they train."""
        return self.early_stopping != "none" or self.validate_on_heldout

    @property
    def epochs(self) -> int:
        """Epochs of a trial, over all cycles."""
        return self.cycles * self.train.epochs

    @property
    def lower_is_better(self) -> bool:
        return metric(self.metric).better == "lower"
