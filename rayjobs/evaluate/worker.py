"""What a worker of `ortho evaluate` does: it loads the judges once, and the model that each task needs."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ortho_core.estep.config import AssignConfig
from ortho_core.estep.engines import Engines
from ortho_core.estep.objective import Reconstruction
from ortho_core.estep.shard_assigner import RecordConfig, ShardAssigner
from ortho_core.evaluation.features import TINY_CLIP, find_features, find_lpips
from ortho_core.evaluation.judge import Judge, JudgeModels
from ortho_core.evaluation.rows import EvaluationRows
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.memory.plan import MOST_SLOTS
from ortho_core.pairs.decoding import Decode
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pairs.rows import Shard
from ortho_core.records.parts import ShardResult
from ortho_core.records.plan import fingerprint
from ortho_core.rewards.names import fingerprint_of, parse_rewards, reward_fingerprints
from ortho_core.storage.planned import as_planned
from rayjobs.evaluate.config import EvaluateJob, judged_framing
from rayjobs.evaluate.plan import EvaluationPlan, ExtractorUsed, JudgesUsed
from rayjobs.pool.engine_search import FEW_SLOTS
from rayjobs.pool.memory import Searched, slots_on_gpu
from rayjobs.pool.protocol import Usage, WorkerPlace

#: Images in one batch without a GPU, if `--batch-size` is 0.
CPU_BATCH = 32


def reward_names(job: EvaluateJob) -> list[str]:
    """The names in `--rewards`. Raises UserError for a name that is no reward."""
    return list(parse_rewards(job.rewards)) if job.rewards is not None else []


def folders_of_rewards(job: EvaluateJob) -> dict[str, Path]:
    """Folders of the rewards' weights, by name. `clip` is tiny-clip, unless `aesthetic` is used, which needs the large CLIP."""
    tiny = {} if "aesthetic" in reward_names(job) else {"clip": TINY_CLIP}
    named = {name: Path(folder) for name, folder in (job.reward_folders or {}).items()}
    return {"": Path(job.rewards_root), **tiny, **named}


def judge_models(job: EvaluateJob) -> JudgeModels:
    """Which models judge. Raises UserError for files that are missing."""
    root = Path(job.rewards_root)
    features = find_features(job.features, root)
    cmmd = find_features(job.cmmd_features, root, "--cmmd-features")
    same = features.folder == cmmd.folder
    lpips = find_lpips(job.lpips) if job.lpips is not None else None
    return JudgeModels(features, None if same else cmmd, job.rewards, folders_of_rewards(job), lpips)


def judges_used(job: EvaluateJob, judges: JudgeModels) -> JudgesUsed:
    """Fingerprints of the judging models' files as they are now. Raises UserError for files that are missing."""
    cmmd = judges.cmmd or judges.features
    return JudgesUsed(
        features=ExtractorUsed(name=judges.features.name, fingerprint=judges.features.fingerprint),
        cmmd_features=ExtractorUsed(name=cmmd.name, fingerprint=cmmd.fingerprint),
        rewards=reward_fingerprints(reward_names(job), folders_of_rewards(job)),
        lpips=fingerprint_of([judges.lpips]) if judges.lpips is not None else None,
    )


def search_config(job: EvaluateJob) -> AssignConfig:
    """Settings of the E-step that searches each row's closest image."""
    return AssignConfig(patch_size=job.patch_size, steps=job.steps, patience=0)


def searched_by(job: EvaluateJob, model: ModelFolder, rows_per_shard: int, rows: int, judges: int = 0) -> Searched:
    """What decides the memory of that E-step; `judges` is the number of bytes that the judges need beside it."""
    most = min(job.batch_size or MOST_SLOTS, rows_per_shard)
    sizes = len(judged_framing(job, model).sizes)
    config = search_config(job)
    return Searched(model, job.dtype, config, most, rows, judges=judges, quantize=job.quantize, sizes=sizes)


@dataclass(frozen=True)
class Judging:
    """The work of an evaluation, as the pool's workers load it."""

    job: EvaluateJob
    models: Mapping[str, ModelFolder]
    plan: EvaluationPlan
    pairs: PairSet

    @property
    def passes(self) -> int:
        return self.job.steps * -(-self.plan.rows_per_shard // (self.job.batch_size or FEW_SLOTS))

    def load(self, place: WorkerPlace, notes: list[str]) -> "ModelByModel":
        job, planned = self.job, self.plan.judges().by_option()
        with as_planned(planned, lambda: judges_used(job, judge_models(job)).by_option()):
            judge = Judge(judge_models(job), place.device)
        return ModelByModel(self, judge, place.device, place.decoder(self.pairs), notes)


@dataclass(frozen=True)
class Loaded:
    """The model of the current task."""

    name: str
    #: Fingerprint of the text encoders: prompt embeddings can be reused by a model with the same one.
    texts: str
    rows: EvaluationRows
    assigner: ShardAssigner


class ModelByModel:
    """Keeps the judges for all tasks, and one model at a time."""

    def __init__(self, judging: Judging, judge: Judge, device: str, decode: Decode, notes: list[str]) -> None:
        self.judging, self.judge, self.device, self.decode, self.notes = judging, judge, device, decode, notes
        self.lock = threading.Lock()
        self.present: Loaded | None = None
        #: Totals of the models before the current one.
        self.computed, self.waited = 0, 0.0

    def search(self, shard: Shard, only: frozenset[int] | None) -> ShardResult:
        """Judge one shard. Every image takes the same number of steps, so no slot waits for a slower image."""
        plan = self.judging.plan
        model, number = divmod(shard.index, plan.shards_per_model)
        with self.lock:
            present = self._turn_to(list(plan.models)[model])
            result = present.assigner.assign(shard, only=only)
            if number == 0:
                result.diversity = tuple(present.rows.spread(plan.diversity_prompts))
        return result

    def usage(self) -> Usage:
        killed = int(getattr(self.decode, "killed", 0))
        slots, computed, waited = 0, self.computed, self.waited
        if (present := self.present) is not None:
            engines = present.assigner.engines
            slots, computed, waited = engines.slots, computed + engines.computed, waited + present.rows.waited
        return Usage(slots, computed, waited, killed)

    def _slots(self, generator: OneStepGenerator, model: ModelFolder, config: AssignConfig) -> int:
        """Images in one batch: the job's number, or as many as fit the GPU beside the judges."""
        job, plan = self.judging.job, self.judging.plan
        if job.batch_size or generator.device.type != "cuda":
            return min(job.batch_size or CPU_BATCH, plan.rows_per_shard)
        searched = searched_by(job, model, plan.rows_per_shard, plan.rows)
        return slots_on_gpu(searched, generator, job.gpus_per_worker, job.gpu_memory, self.notes)

    def _turn_to(self, name: str) -> Loaded:
        """Load the model `name` and free the one before."""
        if self.present is not None and self.present.name == name:
            return self.present
        job, plan, model = self.judging.job, self.judging.plan, self.judging.models[name]
        texts, conditions = model.text_fingerprint, None
        if self.present is not None:
            conditions = self.present.rows.prompts.conditions if texts == self.present.texts else None
            self.computed += self.present.assigner.engines.computed
            self.waited += self.present.rows.waited
            self.present = None
            if torch.device(self.device).type == "cuda":
                torch.cuda.empty_cache()
        generator = load_generator(model, self.device, job.dtype, quantize=job.quantize)
        prompts = PromptCache(generator)
        if conditions is not None:
            prompts.conditions = conditions
        config = search_config(job)
        objective = Reconstruction(generator, config)
        slots = self._slots(generator, model, config)
        framing = judged_framing(job, model)
        engines = Engines(generator, config, slots, objective, self.notes.append, framing.sizes)
        is_base = name == plan.base
        pairs = self.judging.pairs
        rows = EvaluationRows(objective, prompts, pairs, self.judge, job.seed, is_base, self.decode, framing)
        records = RecordConfig(job.seed, "parameters", plan.models[name], fingerprint(plan.config), by_size=False)
        self.present = Loaded(name, texts, rows, ShardAssigner(engines, rows, records))
        return self.present
