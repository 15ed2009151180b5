"""The jobs of the steps of an EM run, as the verb of each step accepts them."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from ortho_core.generators.model_folder import ModelFolder
from ortho_core.noise.seeded import noise_seed
from ortho_core.pairs.rows import PairFields
from ortho_core.records.plan import Settings
from rayjobs.assign import job as assign
from rayjobs.assign.config import AssignJob
from rayjobs.em.config import EmJob
from rayjobs.evaluate.config import EvaluateJob
from rayjobs.pool.config import PoolResources
from rayjobs.reports.summaries import cycle_name
from rayjobs.train.config import TrainJob, TrainSettings

J = TypeVar("J", bound=BaseModel)


def assign_job(job: EmJob, cycle: int, model: Path) -> AssignJob:
    folders = [job.work_dir / cycle_name(n) / "assignments" for n in (cycle - 1, cycle)]
    before = folders[0] if job.warm_start and cycle > 1 else None
    # Only the last cycle has a report, because a report needs a process that loads the model again.
    report = job.assign.report and cycle == job.cycles
    others = {
        "pairs": job.pairs,
        "model": model,
        "out": folders[1],
        "warm_start": before,
        "report": report,
        "prompt_embeddings": job.prompt_embeddings,
        **job.size_options(),
    }
    return build(AssignJob, job.assign, job.training_fields(), **others, **_card(job, job.assign))


def heldout_job(job: EmJob) -> AssignJob:
    return build(
        AssignJob,
        job.assign,
        job.heldout_fields(),
        pairs=job.heldout_place,
        model=job.model,
        out=heldout_assignments(job),
        **job.size_options(),
        report=False,
        prompt_embeddings=job.prompt_embeddings,
        **_card(job, job.assign),
    )


def heldout_assignments(job: EmJob) -> Path:
    return job.work_dir / "heldout_assignments"


def cached(job: EmJob, step: AssignJob, model: ModelFolder) -> AssignJob:
    """With a cache, the E-step writes to the cache's folder for its run fingerprint, and its own folder becomes a link to that.

    Two runs may make the same assignments at once. The ledger allows two drivers on one folder; both write equal files.
    """
    if job.assignments_cache is None:
        return step
    plan, _, _ = assign.make_plan(step, model)
    entry = job.assignments_cache.absolute() / plan.run_fingerprint
    entry.mkdir(parents=True, exist_ok=True)
    link = Path(step.out)
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.unlink(missing_ok=True)  # it may point to an earlier place of the cache
        link.symlink_to(entry, target_is_directory=True)
    return step.model_copy(update={"out": str(entry)})


def train_job(job: EmJob, model: Path, folder: Path) -> TrainJob:
    # Each cycle has another seed; otherwise the preserve term would see the same "fresh" noise again.
    return build(
        TrainJob,
        train_settings(job, {"seed": noise_seed(job.train.seed, folder.name)}),
        assignments=folder / "assignments",
        model=model,
        preserve_model=job.model if job.preserve_to == "first" else None,
        pairs=job.pairs,
        out=folder / "train",
        prompt_embeddings=job.prompt_embeddings,
    )


def train_settings(job: EmJob, changes: Settings) -> TrainSettings:
    watched: Settings = {"validation": str(heldout_assignments(job))} if job.validate_on_heldout else {}
    return job.train.model_copy(update={**changes, **watched})


def baseline_job(job: EmJob) -> TrainJob:
    """Direct SFT: the same targets, losses and number of updates as all cycles together, on random noise."""
    return build(
        TrainJob,
        train_settings(job, {"noise": "random", "center_noise": None, "epochs": job.train.epochs * job.cycles}),
        assignments=job.work_dir / cycle_name(1) / "assignments",
        model=job.model,
        pairs=job.pairs,
        out=job.work_dir / "direct" / "train",
        prompt_embeddings=job.prompt_embeddings,
    )


def judge_job(job: EmJob, models: dict[str, Path]) -> EvaluateJob:
    return build(
        EvaluateJob,
        job.evaluate,
        job.heldout_fields(),
        model=models,
        pairs=job.heldout_place,
        trained_on=job.work_dir / cycle_name(1) / "assignments",
        out=job.work_dir / "evaluation",
        **job.size_options(),
        patch_size=job.assign.patch_size,
        **_card(job, job.evaluate),
    )


def _card(job: EmJob, step: PoolResources) -> dict[str, float | None]:
    """The GPU memory that a step is planned for: the step's setting, or that of the run."""
    return {"gpu_memory": step.gpu_memory or job.gpu_memory}


def build(kind: type[J], settings: BaseModel, pair_fields: PairFields | None = None, **others: object) -> J:
    """A job of one verb from its settings, the fields of the pair set and its other options."""
    named = pair_fields.pair_fields().model_dump() if pair_fields is not None else {}
    return kind.model_validate({**settings.model_dump(), **named, **others})
