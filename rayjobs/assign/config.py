"""The options of `ortho assign`."""

from pathlib import Path

from pydantic import Field

from ortho_core.estep.config import AssignConfig
from ortho_core.pairs import PairFields
from ortho_core.storage.store import Location
from rayjobs.pool.config import PoolSettings
from rayjobs.verb.resources import WorkerResources


class AssignSettings(AssignConfig, PoolSettings):
    """How the E-step runs; `em` has these under `assign.`."""

    store_latents: bool = Field(True, description="keep E(x) in the record, so that training need not encode again")


#: Options that decide how a run goes, not what comes out of it.
INDIFFERENT = WorkerResources.model_fields.keys() | {
    "workers",
    "node_labels",
    "cpus_per_decoder",
    "slots",
    "compile",
    "gradient_checkpointing",
    "max_failure_rate",
}


class AssignJob(AssignSettings, PairFields):
    """Assign noise to every image of a pair set (the E-step)."""

    pairs: Location = Field(
        description="pair set: pairs.jsonl, Parquet, WebDataset tars or an imagefolder; path or URL"
    )
    model: Path = Field(description="model folder (diffusers format)")
    out: Location = Field(description="folder or URL for the assignments; the same command again resumes")
    warm_start: Location | None = Field(
        None, description="finished assignments of the same pairs, e.g. with an earlier model, to start from"
    )
    retry_failures: bool = Field(False, description="besides what is not done yet, try the quarantined rows again")
