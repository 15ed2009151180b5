"""What each Ray Train worker does: the training loop, its resumable state and its checkpoints."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
from torch import nn

from ortho_core.assignments import Assignments
from ortho_core.errors import RunFailed
from ortho_core.folders import link_tree, replace_folder, sweep_partial
from ortho_core.generators.base import OneStepGenerator, load_generator
from ortho_core.matched_data import MatchedData, Order
from ortho_core.prompts import PromptCache
from ortho_core.sft import frozen_copy, sft_loss
from rayjobs.ledger import replace_text

HISTORY = "train_history.jsonl"
TERMS = ("loss", "latent", "pixel", "preserve_latent", "preserve_pixel")


def train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Run on every worker; rank 0 writes. Returns the summary's numbers."""
    from rayjobs.train import TrainJob  # the driver's module imports this one

    job = TrainJob.model_validate(config["job"])
    context = ray.train.get_context()
    torch.set_num_threads(max(1, int(job.cpus_per_worker)))
    return Training(job, context.get_world_rank(), context.get_world_size()).run()


class Training:
    """One worker's view of a run: model, optimiser, data, and where it stands."""

    def __init__(self, job: Any, rank: int, world: int) -> None:
        from diffusers.optimization import get_scheduler

        from rayjobs.train import images_of

        self.job, self.rank, self.world = job, rank, world
        device = ray.train.torch.get_device()
        assignments = Assignments(job.assignments)
        self.generator: OneStepGenerator = load_generator(job.model, device)
        self.teacher = self._teacher(device) if job.preserves else None
        self.network: nn.Module = self.generator.trainable
        self.network.requires_grad_(True).train()
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=job.lr, weight_decay=job.weight_decay, fused=device.type == "cuda"
        )
        self.order = Order(len(assignments), job.batch_size, job.seed)
        self.schedule = get_scheduler(
            # diffusers' "constant" ignores the warm-up
            "constant_with_warmup" if job.lr_schedule == "constant" else job.lr_schedule,
            self.optimizer,
            num_warmup_steps=job.warmup_steps,
            num_training_steps=job.epochs * self.order.batches,
        )
        self.data = MatchedData(
            assignments,
            self.generator,
            PromptCache(self.generator),
            images_of(job.assignments, job.pairs) if job.pairs else None,
            job.noise,
            job.seed,
            bool(job.pixel_l1_weight),
        )
        self.epoch = 0
        #: One entry per finished epoch: the mean of each term.
        self.epochs: list[dict[str, float]] = []
        self._resume()
        if world > 1:
            self.generator.trainable = ray.train.torch.prepare_model(
                self.network, move_to_device=False, parallel_strategy_kwargs={"gradient_as_bucket_view": True}
            )

    def _teacher(self, device: torch.device) -> nn.Module:
        if self.job.preserve_model is None:
            return frozen_copy(self.generator.trainable)
        return load_generator(self.job.preserve_model, device).trainable

    def run(self) -> dict[str, Any]:
        if self.rank == 0:
            sweep_partial(self.job.out)
        while self.epoch < self.job.epochs:
            means = self._train_epoch()
            self.epoch += 1
            self.epochs.append(means)
            self._checkpoint()
        losses = [e["loss"] for e in self.epochs]
        best = int(np.argmin(losses))
        return {"epochs": self.epochs, "best_epoch": best + 1, "best_loss": losses[best], "final_loss": losses[-1]}

    def _train_epoch(self) -> dict[str, float]:
        """One pass; returns each term's mean over the epoch and all workers. Raises RunFailed if one is not finite."""
        job, generator = self.job, self.generator
        sums = torch.zeros(len(TERMS), device=generator.device)
        bf16 = torch.autocast(generator.device.type, torch.bfloat16, enabled=job.mixed_precision == "bf16")
        for step, batch in enumerate(self.data.batches(self.order, self.epoch, self.rank, self.world)):
            with bf16:
                terms = sft_loss(generator, self.teacher, batch, job)
            torch.autograd.backward(terms["loss"])
            nn.utils.clip_grad_norm_(self.network.parameters(), job.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.schedule.step()
            values = torch.stack([terms[name].detach() for name in TERMS])
            sums += values
            # Reading a value waits for the device, so it is done for the log alone, every few updates.
            update = self.epoch * self.order.batches + step + 1
            if self.rank == 0 and (update % 5 == 0 or step + 1 == self.order.batches):
                self._log(update, values)
        if self.world > 1:
            torch.distributed.all_reduce(sums)
        means = dict(zip(TERMS, (sums / (self.order.batches * self.world)).tolist(), strict=True))
        if not np.isfinite(means["loss"]):
            raise RunFailed(
                f"the loss of epoch {self.epoch + 1} is not finite ({means}); the last sound checkpoint is of epoch "
                f"{self.epoch}; a lower --lr is the usual remedy"
            )
        return means

    def _log(self, update: int, values: torch.Tensor) -> None:
        line = {"update": update, **dict(zip(TERMS, values.tolist(), strict=True))}
        with (self.job.out / HISTORY).open("a") as stream:
            stream.write(json.dumps(line) + "\n")

    def _checkpoint(self) -> None:
        """Save model folders (rank 0), then the resumable state through Ray Train; the state is what counts as done."""
        if self.rank == 0:
            self._save_models()
        metrics = {"epoch": self.epoch, **self.epochs[-1]}
        with tempfile.TemporaryDirectory() as scratch:
            checkpoint = None
            if self.rank == 0:
                state = {
                    "epoch": self.epoch,
                    "epochs": self.epochs,
                    "network": self.network.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "schedule": self.schedule.state_dict(),
                }
                torch.save(state, Path(scratch) / "state.pt")
                checkpoint = ray.train.Checkpoint.from_directory(scratch)
            ray.train.report(metrics, checkpoint=checkpoint)

    def _save_models(self) -> None:
        job = self.job
        latest = job.out / "checkpoint-final"
        self.network.eval()
        wrapped, self.generator.trainable = self.generator.trainable, self.network
        self.generator.save(latest)
        self.generator.trainable = wrapped
        self.network.train()
        if job.save_every and self.epoch % job.save_every == 0:
            replace_folder(job.out / f"checkpoint-epoch-{self.epoch:03d}", lambda p: link_tree(latest, p))
        if self.epochs[-1]["loss"] == min(e["loss"] for e in self.epochs):
            replace_folder(job.out / "checkpoint-best", lambda p: link_tree(latest, p))

    def _resume(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as folder:
                state = torch.load(Path(folder) / "state.pt", map_location="cpu", weights_only=True)
            self.epoch, self.epochs = state["epoch"], state["epochs"]
            self.network.load_state_dict(state["network"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
        if self.rank == 0:
            self._trim_history()

    def _trim_history(self) -> None:
        """Drop what the log holds of updates after the state that the run resumes from: they will be made again."""
        file = self.job.out / HISTORY
        done = self.epoch * self.order.batches
        lines = file.read_text().splitlines() if file.exists() else []
        kept = []
        for line in lines:
            try:
                if json.loads(line)["update"] <= done:
                    kept.append(line + "\n")
            except (ValueError, KeyError):  # the line that a kill cut short
                continue
        replace_text(file, "".join(kept))
