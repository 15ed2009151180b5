"""What a sweep is asked for: the configuration of its trials, what varies, how it is searched."""

from typing import Annotated, Literal

import yaml
from pydantic import BeforeValidator, JsonValue

from ortho_core.errors import UserError
from ortho_core.evaluation.metrics import metric
from ortho_core.marks import conduct, decides, mark_of
from ortho_core.pairs import PairFields
from ortho_core.storage.location import LocalPath
from rayjobs.em.config import EmJob, EStepSettings
from rayjobs.evaluate.config import EvaluateSettings
from rayjobs.pool.config import span
from rayjobs.sweep.space import Point, Space, draw, grid, parse_space
from rayjobs.train.config import TrainSettings
from rayjobs.training.trackers import TrackerSettings
from rayjobs.verb.options import Open, leaves

#: Fields that cannot be varied, with the reason.
FIXED = {
    **dict.fromkeys(("pairs", "model"), "is the same for all trials; run a sweep for each"),
    **dict.fromkeys(("heldout", "evaluate"), "decides how trials are judged, which must be the same for all"),
    **dict.fromkeys(("work_dir", "assignments_cache", "train.validation"), "is a place that the sweep itself decides"),
    **dict.fromkeys(("baseline", "validate_on_heldout"), "belongs to the sweep as a whole, not to a trial"),
    **dict.fromkeys(PairFields.model_fields, "is the same for all trials"),
}
#: Why a field that is marked `conduct` cannot be.
CONDUCT = "decides how fast a trial goes or what it tells, not what comes out of it"


class SweepAssignSettings(EStepSettings):
    """The E-step of a trial, one of many."""

    report: bool = conduct(
        False, description="leave report.html beside the assignments of each trial's last cycle: pictures, losses"
    )


class SweepTrainSettings(TrainSettings):
    """The M-step of a trial, which keeps fewer models."""

    save_every: int = decides(
        0, ge=0, description="keep checkpoint-epoch-NNN every so many epochs (0: best and final only)"
    )


class SweepEvaluateSettings(EvaluateSettings):
    """The evaluation of a trial, which has others beside it."""

    workers: Annotated[str, BeforeValidator(span)] = conduct(
        "1", description="actors that judge one trial, N or LEAST:MOST; each holds one model at a time and all judges"
    )


class SweepJob(EmJob, TrackerSettings):
    """Try fields of the configuration at several values: target fit against drift, with the Pareto front."""

    cycles: int = decides(1, ge=1, description="how often E-step and M-step alternate in a trial")
    baseline: bool = decides(
        True, description="also train direct SFT on random noise, with what is not varied, to compare"
    )
    validate_on_heldout: bool = conduct(
        False, description="assign the held-out pairs with the first model too, and watch every M-step on them"
    )
    assign: SweepAssignSettings = SweepAssignSettings()
    train: SweepTrainSettings = SweepTrainSettings()
    evaluate: SweepEvaluateSettings = SweepEvaluateSettings()
    sweep: Annotated[dict[str, JsonValue], Open()] = conduct(
        {},
        description="values of any field, A,B,C, or a range, LOW:HIGH or log:LOW:HIGH, e.g. --sweep.assign.patch-size 2,4",
    )
    space: LocalPath | None = conduct(None, description="YAML file of fields with their values or ranges, as sweep")
    search: Literal["grid", "random", "optuna"] = conduct(
        "grid",
        description="grid: every combination; optuna: looks for the Pareto front (needs the extra optuna)",
    )
    samples: int = conduct(10, ge=1, description="trials of a random or Optuna search")
    search_seed: int = conduct(0, ge=0, description="decides what random and Optuna searches draw")
    metric: str = conduct(
        "latent_mse", description="the figure of target fit: latent_mse, psnr, kid, fid, cmmd, reward_NAME, ..."
    )
    max_drift: float | None = conduct(None, gt=0, description="choose the best fit among trials that drift no further")
    early_stopping: Literal["none", "asha"] = decides(
        "none", description="asha: end trials that do worse on held-out rows than others did after as many epochs"
    )
    grace_epochs: int = decides(1, ge=1, description="epochs that no trial is ended before")
    reduction_factor: int = decides(3, ge=2, description="of so many trials, one goes on at each rung of ASHA")
    max_concurrent: int = conduct(0, ge=0, description="trials at once (0: as many as the cluster has room for)")

    @property
    def watched(self) -> bool:
        """Whether trials are watched on the held-out rows while they train."""
        return self.early_stopping != "none" or self.validate_on_heldout

    @property
    def epochs(self) -> int:
        """Epochs of a trial, over all cycles."""
        return self.cycles * self.train.epochs

    @property
    def lower_is_better(self) -> bool:
        return metric(self.metric).better == "lower"


def space_of(job: SweepJob) -> Space:
    """The checked space, from the file and the options together. Raises UserError."""
    given = dict(job.sweep)
    if job.space is not None:
        try:
            content = yaml.safe_load(job.space.read_text())
        except OSError as error:
            raise UserError(f"--space {job.space}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"--space {job.space} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise UserError(f"--space {job.space} is not a mapping of fields to values")
        given = content | given
    if not given:
        raise UserError(
            "nothing to vary; give --sweep.FIELD VALUES, e.g. --sweep.train.preserve-latent-weight 0,0.25,1"
        )
    return parse_space(given, base_of(job), fixed_fields())


def fixed_fields() -> dict[str, str]:
    """The fields, and groups of fields, that cannot be varied, each with the reason."""
    marked = [name for name, field in leaves(EmJob) if mark_of(field) is conduct]
    marked.remove("train.allow_stale")  # what it lets pass is not speed or reports
    return FIXED | {name: CONDUCT for name in marked if name not in FIXED}


def base_of(job: SweepJob) -> EmJob:
    """The configuration that the space is laid over."""
    base = EmJob(**{name: value for name, value in job.model_dump().items() if name in EmJob.model_fields})
    return base.model_copy(update={"heldout": job.heldout})  # which is read already


def points_of(job: SweepJob, space: Space) -> list[Point]:
    """The trials, as far as they are known beforehand; of Optuna's, what its first might be."""
    if job.search == "grid":
        return grid(space)
    return draw(space, job.samples, job.search_seed)


def reference_point(points: list[Point]) -> Point:
    """Where direct SFT stands: with the configuration's own values, on the E-step of the first trial."""
    return {name: value for name, value in points[0].items() if name.startswith("assign.")}
