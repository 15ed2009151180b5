"""The prompts of a training run, which are encoded before it (`--prompt-embeddings`)."""

from collections.abc import Iterator, Sequence

import torch

from ortho_core.generators.bucket_sizes import own_size
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.mstep.data import MatchedData
from ortho_core.mstep.unassigned import UnassignedRows
from ortho_core.mstep.validation import validated_rows
from ortho_core.records.assignments import Assignments
from rayjobs.pool.prompt_pass import Encoding, fill, prompts_of
from rayjobs.train.config import TrainJob
from rayjobs.train.precision import frozen_in


def encode(job: TrainJob, data: MatchedData, model: ModelFolder, verb: str) -> None:
    """Encode the prompts of the rows, of the preserve terms and of the validation that the folder lacks.

    Does nothing without --prompt-embeddings. Raises UserError or RunFailed.
    """
    if job.prompt_embeddings is None:
        return

    def prompts() -> Iterator[Sequence[str]]:
        yield data.preserve_prompts
        yield validated(job, model)
        source = data.source
        yield from (
            prompts_of(source.pairs, source.shards)()
            if isinstance(source, UnassignedRows)
            else source.prompts_by_part()
        )

    device = torch.device(job.worker_device() if job.num_workers else job.own_device())
    encoding = Encoding(job.prompt_embeddings, model, frozen_in(job, model, device), job.quantize)
    fill(job, (job.num_workers, job.num_workers), encoding, prompts, verb)


def validated(job: TrainJob, model: ModelFolder) -> list[str]:
    """The prompts of the rows that the workers validate on."""
    if job.validation is None:
        return []
    held = Assignments(job.validation)
    one_size = held.plan.framing(own_size(model)).is_one_size
    of_workers = (
        validated_rows(held, min(job.validation_rows, len(held)), rank, job.world, one_size)
        for rank in range(job.world)
    )
    index = [row for groups in of_workers for rows, _ in groups for row in rows]
    return [str(row["prompt"]) for row in held.rows(index, ["prompt"])]
