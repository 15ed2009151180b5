"""What each worker of `ortho evaluate` does: the pool of `assign`, with a model per task and judges that stay."""

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ortho_core.errors import UserError
from ortho_core.estep.config import AssignConfig
from ortho_core.estep.engine import Engine
from ortho_core.estep.objective import Reconstruction
from ortho_core.estep.shard_assigner import RecordConfig, ShardAssigner
from ortho_core.evaluation.features import find_features, find_lpips
from ortho_core.evaluation.judge import Judge, JudgeModels
from ortho_core.evaluation.rows import SCHEMA, EvaluationRows
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.pairs import Shard
from ortho_core.records.assignments import Start
from ortho_core.records.parts import ShardResult, encode_rows, part_name
from ortho_core.storage.open import open_store
from rayjobs.pool.ledger import Ledger
from rayjobs.pool.worker import ShardActor
from rayjobs.verb.plan import differences, fingerprint

#: Folder of the part files, in the job's.
PARTS = "parts"


class EvaluateLedger(Ledger):
    """A task is a shard of one model: number m·S + s for shard s of S and model m."""

    def encode(self, result: ShardResult, about: dict[str, Any]) -> bytes:
        return encode_rows(result.rows, result.failures, about, SCHEMA)

    def take_base_from(self, other: Path) -> None:
        """Publish the base model's parts of another evaluation as this one's. Raises UserError where they are not the same."""
        try:
            theirs = json.loads((other / "plan.json").read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"--base-from {other} is no evaluation: {error}") from error
        mine, them = (_of_the_base(plan) for plan in (self.plan, theirs))
        if differing := differences(them, mine):
            raise UserError(f"--base-from {other} was not judged as this is to be: " + "; ".join(differing))
        parts = open_store(other).child(PARTS)
        for shard in range(self.plan["shards"] // len(self.plan["models"])):
            name = part_name(shard, theirs["run_fingerprint"])
            if not self.folder.exists(self.name(shard)) and parts.exists(name):
                self.folder.create(self.name(shard), parts.read(name))


def _of_the_base(plan: dict[str, Any]) -> dict[str, Any]:
    """What a base model's parts depend on."""
    each = len(plan.get("models", {})) or 1
    others = ("models", "base", "rows", "shards")
    return {k: v for k, v in plan.items() if k not in others} | {
        "shards": plan.get("shards", 0) // each,
        "model": plan.get("models", {}).get(plan.get("base")),
    }


def judge_models(job: Any) -> JudgeModels:
    """Which models judge. Raises UserError for files that are missing."""
    root = Path(job.rewards_root)
    features = find_features(job.features, root)
    cmmd = find_features(job.cmmd_features, root, "--cmmd-features")
    same = features.folder == cmmd.folder
    lpips = find_lpips(job.lpips) if job.lpips is not None else None
    return JudgeModels(features, None if same else cmmd, job.rewards, job.folders(), lpips)


class EvaluateActor(ShardActor):
    """One worker of the pool: holds the judges, and the model of its present task."""

    rows: EvaluationRows

    @staticmethod
    def ledger_of(job: Any, sealed: dict[str, Any]) -> Ledger:
        return EvaluateLedger(open_store(job.out).child(PARTS), sealed)

    def prepare(self, device: str, decoder_cpus: float) -> None:
        self.device = device
        self.judge = Judge(judge_models(self.job), device)
        self.decode = self._decode(decoder_cpus)
        self.lock = threading.Lock()
        self.present: str | None = None
        self.texts: str | None = None

    def search(self, shard: Shard, starts: Mapping[str, Start] | None, only: frozenset[int] | None) -> ShardResult:
        """One shard at a time: all images of an evaluation take the same steps, so none is waited for at its end."""
        names = list(self.sealed["models"])
        model, number = divmod(shard.index, self.sealed["shards"] // len(names))
        with self.lock:
            self._turn_to(names[model], self.models[model], is_base=model == 0)
            result = self.assigner.assign(shard, starts, only)
            if number == 0:
                result.about["diversity"] = self.rows.spread(self.sealed["diversity_prompts"])
        return result

    def _turn_to(self, name: str, model: ModelFolder, is_base: bool) -> None:
        """Have this model in memory, and no other."""
        if name == self.present:
            return
        job, texts = self.job, model.text_fingerprint
        conditions, computed, waited = None, 0, 0.0
        if self.present is not None:
            conditions = self.rows.prompts.conditions if texts == self.texts else None
            computed, waited = self.engine.computed, self.rows.waited  # what the metrics count goes on
            self.present = None
            del self.engine, self.assigner, self.rows
            if self.device == "cuda":
                torch.cuda.empty_cache()
        generator = load_generator(model, self.device)
        prompts = PromptCache(generator)
        if conditions is not None:
            prompts.conditions = conditions
        config = AssignConfig(patch_size=job.patch_size, steps=job.steps, patience=0)
        objective = Reconstruction(generator, config)
        slots = min(job.batch_size, self.sealed["rows_per_shard"])
        self.engine = Engine(generator, config, slots, objective, on_event=self.notes.append)
        self.rows = EvaluationRows(objective, prompts, self.pairs, self.judge, job.seed, is_base, self.decode)
        self.engine.computed, self.rows.waited = computed, waited
        records = RecordConfig(job.seed, "parameters", self.sealed["models"][name], fingerprint(self.sealed["config"]))
        self.assigner = ShardAssigner(self.engine, self.rows, records)
        self.present, self.texts = name, texts
