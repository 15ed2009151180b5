"""What each worker of `ortho train-gan` does: updates in order, a log, a picture of each epoch, resumable states."""

import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ortho_core.errors import RunFailed, UserError
from ortho_core.evaluation import to_bytes
from ortho_core.generators.class_conditional import ClassGenerator, ClassNetwork
from ortho_core.generators.class_config import ClassConfig
from ortho_core.generators.fitting.class_groups import Groups
from ortho_core.generators.fitting.diversity import SAMPLES, Diversity, diversity
from ortho_core.generators.fitting.fit import FitBatch, make_fit, terms_of
from ortho_core.generators.model_card import model_card
from ortho_core.noise.seeded import noise_seed, seeded_normal
from ortho_core.pairs import PairSet
from ortho_core.pairs.known_sets import Labelled
from ortho_core.pictures import labelled_rows
from ortho_core.storage.folders import sweep_partial
from rayjobs.train.run_files import HISTORY, OWN_STATE, STOPPED, saved_state, trim_history
from rayjobs.train.trackers import Trackers
from rayjobs.verb.plan import fingerprint, replace_text

#: Classes, and images of each, on the picture of an epoch.
SHOWN = 10


def train_gan_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Run on every worker; rank 0 writes. Returns the summary's numbers, or `error` where trying again is of no use."""
    from rayjobs.train_gan.config import TrainGanJob  # the driver's module imports this one

    job = TrainGanJob.model_validate(config["job"])
    stopped = job.out / STOPPED
    if stopped.is_file():
        return {"error": stopped.read_text()}
    context = ray.train.get_context()
    torch.set_num_threads(max(1, int(job.cpus_per_worker)))
    try:
        rank, world = context.get_world_rank(), context.get_world_size()
        return GanTraining(job, config["sealed"], PairSet(config["location"]), rank, world).run()
    except (UserError, RunFailed) as error:
        if context.get_world_size() == 1:
            return {"error": str(error)}
        replace_text(stopped, str(error))
        raise


class GanTraining:
    """One worker's view of a run: the images, the generator, and where it stands."""

    def __init__(self, job: Any, sealed: dict[str, Any], pairs: PairSet, rank: int, world: int) -> None:
        self.job, self.sealed, self.rank, self.world = job, sealed, rank, world
        config = ClassConfig.model_validate(sealed["generator"])
        images, self.data = Labelled.of(pairs, config.classes).images(pairs, config.image_shape)
        self.images = torch.from_numpy(images)
        self.groups = Groups(self.data.labels, job.group_size, job.groups_per_update, job.seed)
        # Bad images leave fewer groups than the plan counted by the rows.
        self.updates = job.epochs * self.groups.updates
        if not self.updates:
            raise RunFailed(f"{len(images)} usable images fill no update; the first of the others: {self.data.bad[0]}")
        torch.manual_seed(job.seed)  # the same first weights on every worker
        network = ClassNetwork(config).to(ray.train.torch.get_device())
        self.generator = ClassGenerator(config, network)
        self.fit = make_fit(self.generator, job.fit_config(), self.updates, self._wrap)
        self.terms = terms_of(job.fit_config())
        self.update, self.seconds = 0, 0.0
        self.epochs: list[dict[str, float]] = []
        self.sums = np.zeros(len(self.terms))
        state = saved_state(job.out)
        if state is not None:
            self._resume(state)
        if rank == 0:
            trim_history(job.out / HISTORY, self.update)
        self.resumed_at = self.update
        self.trackers: Trackers | None = None

    def _wrap(self, network: nn.Module) -> nn.Module:
        if self.world == 1:
            return network
        wrapped: nn.Module = ray.train.torch.prepare_model(
            network, move_to_device=False, parallel_strategy_kwargs={"broadcast_buffers": False}
        )
        return wrapped

    def run(self) -> dict[str, Any]:
        job = self.job
        if self.rank:
            self._train()
            return {}
        sweep_partial(job.out)
        run_id = fingerprint([self.sealed["run_fingerprint"], str(job.out)])
        with Trackers(job, job.out, job.title, self.sealed, run_id, self.resumed_at) as self.trackers:
            self._train()
        told = self._diversity()
        self.generator.save(job.out / "checkpoint-final", self._card(told))
        return {
            "epochs": self.epochs,
            "final_loss": self.epochs[-1]["loss"],
            "diversity": told.as_json(),
            "told": told.told(),
            "bad_rows": self.data.bad[:20],
            "training_seconds": round(self.seconds, 1),
            "tracker_failures": self.trackers.told,
        }

    def _train(self) -> None:
        while self.update < self.updates:
            began = time.monotonic()
            epoch, step = divmod(self.update, self.groups.updates)
            terms = self.fit.update(self._batch(epoch, step))
            self.update += 1
            if self.world > 1:
                dist.all_reduce(terms)
                terms = terms / self.world
            values = terms.tolist()
            if not all(map(math.isfinite, values)):
                raise RunFailed(f"the loss was not finite in update {self.update} of {self.updates}; lower --lr")
            self.sums += values
            self.seconds += time.monotonic() - began
            self._after(values)

    def _after(self, values: list[float]) -> None:
        """What is due after an update."""
        job = self.job
        epoch_ends = self.update % self.groups.updates == 0
        if self.update % job.log_every == 0 or epoch_ends:
            self._log(dict(zip(self.terms, values, strict=True)), "train")
        if epoch_ends:
            means = self.sums / self.groups.updates
            self.sums[:] = 0
            self.epochs.append(dict(zip(self.terms, means.tolist(), strict=True)))
            if self.rank == 0:
                self._picture()
        if self.update % job.checkpoint_every == 0 or self.update == self.updates:
            self._checkpoint()

    def _batch(self, epoch: int, step: int) -> FitBatch:
        """This worker's share of an update; depends on the seed and the position alone."""
        job, config = self.job, self.generator.config
        index = torch.from_numpy(self.groups.share(epoch, step, self.rank, self.world))
        labels = torch.from_numpy(self.data.labels)[index[:, 0]]
        images = self.images[index].float().div_(127.5).sub_(1)
        first = self.rank * len(index)
        seeds = [noise_seed(job.seed, "fit", self.update, first + g) for g in range(len(index))]
        noise = seeded_normal(seeds, (job.fit_config().noises, *config.noise_shape))
        classes = torch.eye(len(config.classes))[labels]
        device = self.generator.device
        return FitBatch(images.to(device), classes.to(device), noise.to(device))

    def _log(self, values: dict[str, float], group: str) -> None:
        if self.trackers is None:
            return
        with (self.job.out / HISTORY).open("a") as stream:
            stream.write(json.dumps({"update": self.update, "group": group, **values}) + "\n")
        self.trackers.log(self.update, {f"{group}/{name}": value for name, value in values.items()})

    def _of_class(self, number: int, count: int) -> Tensor:
        """The first images of a class, (S, c, Y, X) uint8."""
        return self.images[torch.from_numpy(np.flatnonzero(self.data.labels == number)[:count])]

    def _diversity(self) -> Diversity:
        classes = self.generator.config.classes
        real = [
            self._of_class(k, SAMPLES).float().div(127.5).sub(1).to(self.generator.device) for k in range(len(classes))
        ]
        self.generator.network.eval()
        found = diversity(self.generator, classes, real)
        self.generator.network.train()
        return found

    @torch.no_grad()
    def _picture(self) -> None:
        """Each class at the same noises in every epoch, and how far apart its images are."""
        told = self._diversity()
        self._log({"of_the_data's": told.mean}, "diversity")
        generator = self.generator
        names = generator.config.classes[:SHOWN]
        noise = generator.base_noise([noise_seed(0, "picture", i) for i in range(SHOWN)])
        generator.network.eval()
        conditions = {name: generator.encode_prompts([name] * SHOWN) for name in names}
        rows = {n: to_bytes(generator.decode(generator.denoise(noise, c))) for n, c in conditions.items()}
        generator.network.train()
        sheet = labelled_rows(rows, scale=2)
        (self.job.out / "samples").mkdir(exist_ok=True)
        sheet.save(self.job.out / "samples" / f"epoch-{len(self.epochs):03d}.png")
        if self.trackers is not None:
            self.trackers.image(self.update, "samples", np.asarray(sheet))

    def _checkpoint(self) -> None:
        """The resumable state, through Ray Train; it is what counts as done."""
        with tempfile.TemporaryDirectory() as scratch:
            checkpoint = None
            if self.rank == 0:
                state = {
                    "update": self.update,
                    "epochs": self.epochs,
                    "sums": self.sums.tolist(),
                    "seconds": self.seconds,
                    "fit": self.fit.state_dict(),
                }
                if self.job.num_workers:
                    torch.save(state, Path(scratch) / "state.pt")
                    checkpoint = ray.train.Checkpoint.from_directory(scratch)
                else:  # Ray Train keeps no checkpoints of a run in its driver's process
                    fresh = self.job.out / f".{OWN_STATE}"
                    torch.save(state, fresh)
                    fresh.replace(self.job.out / OWN_STATE)
            ray.train.report({"update": self.update}, checkpoint=checkpoint)

    def _resume(self, state: dict[str, Any]) -> None:
        self.update, self.epochs, self.seconds = state["update"], state["epochs"], state["seconds"]
        self.sums = np.array(state["sums"])
        self.fit.load_state_dict(state["fit"])

    def _card(self, told: Diversity) -> str:
        sealed = self.sealed
        return model_card(
            f"{self.job.title}: a generator of {self.job.data}",
            base="",
            facts={
                "trained on": f"{len(self.images)} images in {len(self.generator.config.classes)} classes",
                "pairs fingerprint": sealed["pairs_fingerprint"],
                "noise": "×".join(map(str, self.generator.latent_shape)),
                "run": sealed["run_fingerprint"],
            },
            metrics={f"train {k}": v for k, v in self.epochs[-1].items()} | {"diversity, of the data's": told.mean},
            config=sealed["config"],
            lora=False,
            classes=self.generator.config.classes,
        )
