"""The model folders that training writes: `checkpoint-best`, `-final` and `-epoch-NNN`, each with a model card."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from ortho_core.framing.framing import Framing
from ortho_core.framing.image_size import text_of
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora import TEACHER, add_lora, has_lora
from ortho_core.generators.model_card import model_card
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.origin import base_name, model_name, origin_of
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.mstep.update import MStep
from ortho_core.storage.aside import folder_aside
from ortho_core.storage.folders import link_tree, replace_folder
from ortho_core.storage.location import place_name
from ortho_core.storage.open import open_store
from ortho_core.text.parsing import json_object
from rayjobs.train.config import TrainJob
from rayjobs.train.plan import TrainPlan


def pairs_of(job: TrainJob) -> str:
    """The location of the training pairs: `--pairs`, else that in the assignments' summary, else the assignments."""
    if job.pairs is not None or job.assignments is None:
        return str(job.pairs)
    try:
        return str(json_object(open_store(job.assignments).read("summary.json"), "it")["config"]["pairs"])
    except (OSError, ValueError, KeyError, TypeError):  # assignments of prompts, or of an unfinished run
        return job.assignments


class CheckpointFolders:
    """Writes the network; with EMA also the averaged one, in a folder whose name ends with `-ema`."""

    def __init__(
        self, job: TrainJob, plan: TrainPlan, model: ModelFolder, step: MStep, rank: int, framing: Framing | None = None
    ) -> None:
        """`framing`: the sizes of the images that are trained on (None: one size)."""
        self.job, self.plan, self.model, self.step, self.rank = job, plan, model, step, rank
        self.sizes = tuple(map(text_of, framing.sizes)) if framing is not None else ()
        #: The name of the data in model cards.
        self.data = place_name(pairs_of(job))

    def save(self, names: list[str], update: int, metrics: Mapping[str, float]) -> None:
        """Write the first folder, and the others as links to its files. Every worker calls this; rank 0 writes."""
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
        self._mark(generator)
        network, training = generator.trainable, generator.trainable.training
        network.eval()
        card = self._card(bool(suffix), update, metrics)
        if has_lora(network) and self.job.lora_merge:
            # Merged in a copy, because unmerging an adapter would not restore the exact weights.
            with folder_aside(self.job.out / "lora") as adapted:
                generator.save(adapted)
                merged = load_generator(self.model.base.with_adapter(adapted))
                self._mark(merged)
                merged.save(first, card, single_file=self.job.single_file)
        else:
            generator.save(first, card, single_file=self.job.single_file)
        network.train(training)
        for other in others:
            replace_folder(other, lambda folder: link_tree(first, folder))

    def _mark(self, generator: OneStepGenerator) -> None:
        """Record the sizes of images in the model, if there are several: then later commands use them by default."""
        if hasattr(generator, "buckets"):
            generator.buckets = self.sizes if len(self.sizes) > 1 else ()

    def _gathered(self) -> dict[str, Any] | None:
        """The full weights of a sharded network, in rank 0's CPU memory; None if it is not sharded."""
        if self.job.parallel != "fsdp" or self.step.wrapped is not self.step.network:
            return None
        return get_model_state_dict(self.step.network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))

    def _plain(self, weights: dict[str, torch.Tensor]) -> OneStepGenerator:
        """A generator on the CPU with the gathered weights, since a sharded network cannot be saved directly."""
        job = self.job
        plain = load_generator(self.model, keep_adapter=bool(job.lora_rank))
        if (adapter := job.adapter(self.model)) is not None and not has_lora(plain.trainable):
            add_lora(plain.trainable, adapter, job.seed)
        plain.trainable.load_state_dict({k: v for k, v in weights.items() if f".{TEACHER}." not in k})
        return plain

    def _card(self, averaged: bool, update: int, metrics: Mapping[str, float]) -> str:
        plan, job = self.plan, self.job
        kinds = {
            "matched": "latent-matched SFT",
            "online": "SFT on noise that is matched while training",
            "random": "direct SFT",
            "base": "distillation of the images that a search found",
        }
        rows, source = "pairs", {}
        if job.assignments is not None:
            rows, source = "assignments", {"assignments": f"{place_name(job.assignments)} (run {plan.assignments})"}
        base, lora = base_name(self.model.base.path), bool(job.lora_rank) and not job.lora_merge
        held = job.model if job.preserve_model is None else job.preserve_model
        return model_card(
            f"{'LoRA of ' if lora else ''}{base}, fine-tuned on {self.data}",
            base=base,
            model=self.model.base,
            facts={
                **({} if (origin := origin_of(self.model.base.path)) is None else {"base model": origin}),
                "trained on": f"{plan.rows} {rows}, {job.noise} noise ({kinds[job.noise]})",
                "pairs": f"{self.data} (fingerprint {plan.pairs_fingerprint})",
                **source,
                "started from": f"{model_name(job.model)} (fingerprint {plan.model_fingerprint})",
                "held to": f"{model_name(held)} (fingerprint {plan.preserve_fingerprint})",
                **({"sizes of images": ", ".join(self.sizes)} if len(self.sizes) > 1 else {}),
                "update": f"{update} of {plan.updates}",
                **({"weights": "averaged over updates (EMA)"} if averaged else {}),
                "run": plan.run_fingerprint,
            },
            metrics=metrics,
            config=plan.config,
            lora=lora,
            single_file=job.single_file,
            classes=self.model.classes,
        )
