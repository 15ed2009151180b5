"""The model folders that training leaves: `checkpoint-best`, `-final` and `-epoch-NNN`, each with its card."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from ortho_core.generators.load import load_generator
from ortho_core.generators.lora import TEACHER, add_lora, has_lora
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.model_card import model_card
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.origin import base_name, origin_of
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.mstep.update import MStep
from ortho_core.storage.aside import folder_aside
from ortho_core.storage.folders import link_tree, replace_folder
from rayjobs.train.config import TrainJob
from rayjobs.train.plan import TrainPlan


class CheckpointFolders:
    """Writes the network as it is; with EMA, its average too, under the name with `-ema` added."""

    def __init__(self, job: TrainJob, plan: TrainPlan, model: ModelFolder, step: MStep, rank: int) -> None:
        self.job, self.plan, self.model, self.step, self.rank = job, plan, model, step, rank

    def save(self, names: list[str], update: int, metrics: Mapping[str, float]) -> None:
        """Write the first folder and link the others to its files. Every worker calls this; rank 0 writes."""
        variants = [""] if self.step.ema is None else ["", "-ema"]
        for suffix in variants:
            if suffix:
                with self.step.averaged():
                    self._write(names, suffix, update, metrics)
            else:
                self._write(names, suffix, update, metrics)

    def _write(self, names: list[str], suffix: str, update: int, metrics: Mapping[str, float]) -> None:
        weights = self._gathered()
        if self.rank:
            return
        first, *others = [self.job.out / f"checkpoint-{name}{suffix}" for name in names]
        generator = self.step.generator if weights is None else self._plain(weights)
        network, training = generator.trainable, generator.trainable.training
        network.eval()
        card = self._card(first.name, update, metrics)
        if has_lora(network) and self.job.lora_merge:
            # Merged in a copy: taking an adapter out again would not give the same weights back to the last bit.
            with folder_aside(self.job.out / "lora") as adapted:
                generator.save(adapted)
                load_generator(self.model.base.with_adapter(adapted)).save(
                    first, card, single_file=self.job.single_file
                )
        else:
            generator.save(first, card, single_file=self.job.single_file)
        network.train(training)
        for other in others:
            replace_folder(other, lambda folder: link_tree(first, folder))

    def _gathered(self) -> dict[str, Any] | None:
        """Of a sharded network the whole weights, in rank 0's memory."""
        if self.job.parallel != "fsdp" or self.step.wrapped is not self.step.network:
            return None
        return get_model_state_dict(self.step.network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))

    def _plain(self, weights: dict[str, torch.Tensor]) -> OneStepGenerator:
        """A generator on the CPU with those weights: a sharded network cannot be saved as it is."""
        job = self.job
        plain = load_generator(self.model, keep_adapter=bool(job.lora_rank))
        if job.lora_rank and not has_lora(plain.trainable):
            add_lora(plain.trainable, Lora(job.lora_rank, job.alpha, job.targets), job.seed)
        plain.trainable.load_state_dict({k: v for k, v in weights.items() if f".{TEACHER}." not in k})
        return plain

    def _card(self, name: str, update: int, metrics: Mapping[str, float]) -> str:
        plan, job = self.plan, self.job
        kinds = {
            "matched": "latent-matched SFT",
            "online": "SFT on noise that is matched while training",
            "random": "direct SFT",
            "base": "distillation of what was searched for",
        }
        rows, source = "pairs", {"pairs": str(job.pairs)}
        if plan.assignments is not None:
            rows, source = "assignments", {"assignments": f"{job.assignments} (run {plan.assignments})"}
        return model_card(
            f"{job.title} {name}",
            base=base_name(self.model.base.path),
            model=self.model.base,
            facts={
                **({} if (origin := origin_of(self.model.base.path)) is None else {"base model": origin}),
                "trained on": f"{plan.rows} {rows}, {job.noise} noise ({kinds[job.noise]})",
                **source,
                "pairs fingerprint": plan.pairs_fingerprint,
                "started from": f"{job.model} (fingerprint {plan.model_fingerprint})",
                "held to": f"{job.preserve_model or job.model} (fingerprint {plan.preserve_fingerprint})",
                "update": f"{update} of {plan.updates}",
                "run": plan.run_fingerprint,
            },
            metrics=metrics,
            config=plan.config,
            lora=bool(job.lora_rank) and not job.lora_merge,
            single_file=job.single_file,
            classes=self.model.classes,
        )
