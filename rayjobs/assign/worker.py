"""The goal of each worker of `ortho assign`: find the noise that the model maps closest to each image."""

from dataclasses import dataclass

from ortho_core.estep.objective import Reconstruction
from ortho_core.estep.rows import PairRows
from ortho_core.framing.framing import Framing
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.generators.prompt_store import PromptStore
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.pairs.pair_set import PairSet
from ortho_core.records.plan import ReconstructionPlan
from rayjobs.assign.config import AssignJob, assigned_framing
from rayjobs.pool.engine_search import EngineSearch
from rayjobs.pool.protocol import Decoder


@dataclass(frozen=True)
class Reconstructing:
    """The goal of `ortho assign`, as the pool's `EngineSearch` needs it."""

    config: AssignJob
    framing: Framing
    model: ModelFolder

    def rows(self, generator: OneStepGenerator, pairs: PairSet, decoder: Decoder) -> PairRows:
        objective = Reconstruction(generator, self.config)
        job, place = self.config, self.config.prompt_embeddings
        store = None if place is None else PromptStore.of(place, self.model, job.dtype, generator.device)
        prompts = PromptCache(generator, store)
        return PairRows(objective, prompts, pairs, job.store_latents, decoder(pairs), self.framing)


def search_of(job: AssignJob, model: ModelFolder, plan: ReconstructionPlan, pairs: PairSet) -> EngineSearch:
    """The search that each worker of the job runs."""
    return EngineSearch(
        job, model, Reconstructing(job, assigned_framing(job, model), model), plan, pairs, job.warm_start
    )
