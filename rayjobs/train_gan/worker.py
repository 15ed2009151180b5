"""The training worker of `ortho train-gan`: updates of the generator, and a picture after each epoch."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray.train.torch
import torch
from torch import Tensor, nn

from ortho_core.device import to_device
from ortho_core.errors import RunFailed
from ortho_core.generators.class_conditional import ClassGenerator, ClassNetwork
from ortho_core.generators.fitting.class_groups import Groups
from ortho_core.generators.fitting.diversity import SAMPLES_PER_CLASS, Diversity, diversity
from ortho_core.generators.fitting.fit import FitBatch, make_fit, terms_of
from ortho_core.generators.model_card import model_card
from ortho_core.noise.seeded import noise_seed, seeded_normal
from ortho_core.pairs.known_sets import Labelled
from ortho_core.pairs.pair_set import PairSet
from ortho_core.pictures import to_bytes
from ortho_core.storage.lease import Ticket
from ortho_core.storage.location import place_name
from rayjobs.train_gan.config import TrainGanJob
from rayjobs.train_gan.plan import TrainGanPlan
from rayjobs.training.loop import TrainLoop, Update, work

#: Number of classes, and of images per class, in the picture of an epoch.
CLASSES_SHOWN = 10


def train_gan_worker(config: dict[str, Any]) -> dict[str, object]:
    """Runs on every worker; rank 0 writes. Returns the numbers of the summary, or `error` if a retry cannot help."""
    job = TrainGanJob.model_validate(config["job"])

    def run(rank: int, world: int) -> dict[str, object]:
        return GanTraining(job, config["plan"], PairSet(config["location"]), rank, world, config["ticket"]).run()

    return work(job, job.out, run)


class GanTraining(TrainLoop[FitBatch]):
    """Fits a class-conditional generator to labelled images. Every worker has all images in memory."""

    def __init__(
        self,
        job: TrainGanJob,
        plan: TrainGanPlan,
        pairs: PairSet,
        rank: int,
        world: int,
        ticket: Ticket | None = None,
    ) -> None:
        config = plan.generator
        images, self.data = Labelled.of(pairs, config.classes).images(pairs, config.image_shape)
        self.job, self.images = job, torch.from_numpy(images)
        self.groups = Groups(self.data.labels, job.group_size, job.groups_per_update, job.seed)
        # The plan counted groups by rows; bad images leave fewer.
        epoch = self.groups.updates
        if not epoch:
            raise RunFailed(
                f"{len(images)} usable images are too few for one update; the first of the unusable ones: {self.data.bad[0]}"
            )
        terms = terms_of(job.fit_config())
        super().__init__(job, job.out, job.title, plan, terms, epoch, job.epochs * epoch, rank, world, ticket)
        torch.manual_seed(job.seed)  # the same first weights on every worker
        network = ClassNetwork(config).to(self.device)
        self.generator = ClassGenerator(config, network)
        self.fit = make_fit(self.generator, job.fit_config(), self.updates, self._wrap)

    def _wrap(self, network: nn.Module) -> nn.Module:
        if self.world == 1:
            return network
        wrapped: nn.Module = ray.train.torch.prepare_model(
            network, move_to_device=False, parallel_strategy_kwargs={"broadcast_buffers": False}
        )
        return wrapped

    def batches(self) -> Iterator[FitBatch]:
        for update in range(self.update, self.updates):
            yield self._batch(update)

    def _batch(self, update: int) -> FitBatch:
        """This worker's share of an update. It depends only on the seed and the position."""
        job, config = self.job, self.generator.config
        epoch, step = divmod(update, self.groups.updates)
        index = torch.from_numpy(self.groups.share(epoch, step, self.rank, self.world))
        labels = torch.from_numpy(self.data.labels)[index[:, 0]]
        images = self.images[index].float().div_(127.5).sub_(1)
        first = self.rank * len(index)
        seeds = [noise_seed(job.seed, "fit", update, first + g) for g in range(len(index))]
        noise = seeded_normal(seeds, (job.fit_config().noises, *config.noise_shape))
        classes = torch.eye(len(config.classes))[labels]
        device = self.generator.device
        return FitBatch(to_device(images, device), to_device(classes, device), to_device(noise, device))

    def one_update(self, batch: FitBatch) -> Update:
        terms = self.averaged(self.fit.update(batch)).cpu()
        if not all(map(math.isfinite, terms.tolist())):
            raise RunFailed(f"the loss was not finite in update {self.update + 1} of {self.updates}; lower --lr")
        return Update(terms)

    def after_update(self, epoch_ends: bool) -> None:
        if epoch_ends and self.rank == 0:
            self._picture()

    def finish(self) -> dict[str, object]:
        measured = self._diversity()
        self.generator.save(self.out / "checkpoint-final", self._card(measured))
        return {
            "final_loss": self.epochs[-1]["loss"],
            "diversity": measured.as_json(),
            "bad_rows": self.data.bad[:20],
            "training_seconds": round(self.seconds, 1),
        }

    def state_dict(self) -> dict[str, object]:
        return {"fit": self.fit.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.fit.load_state_dict(state["fit"])

    def _diversity(self) -> Diversity:
        classes = self.generator.config.classes
        device = self.generator.device
        real = [self._of_class(k, SAMPLES_PER_CLASS).float().div(127.5).sub(1).to(device) for k in range(len(classes))]
        self.generator.network.eval()
        measured = diversity(self.generator, classes, real)
        self.generator.network.train()
        return measured

    def _of_class(self, number: int, count: int) -> Tensor:
        """The first images of a class, (S, c, Y, X) uint8."""
        return self.images[torch.from_numpy(np.flatnonzero(self.data.labels == number)[:count])]

    @torch.no_grad()
    def _picture(self) -> None:
        """Write the picture of an epoch, with each class at the same noises every time, and log the diversity."""
        self.write({"of_the_data's": self._diversity().mean}, "diversity")
        generator = self.generator
        names = generator.config.classes[:CLASSES_SHOWN]
        noise = generator.base_noise([noise_seed(0, "picture", i) for i in range(CLASSES_SHOWN)])
        generator.network.eval()
        conditions = {name: generator.encode_prompts([name] * CLASSES_SHOWN) for name in names}
        rows = {n: to_bytes(generator.decode(generator.denoise(noise, c))) for n, c in conditions.items()}
        generator.network.train()
        self.write_pictures(rows, f"epoch-{len(self.epochs):03d}", "samples", scale=2)

    def _card(self, measured: Diversity) -> str:
        plan = self.plan
        return model_card(
            f"A generator of {place_name(self.job.root) if self.job.data == 'any' else self.job.data}",
            base="",
            facts={
                "trained on": f"{len(self.images)} images in {len(self.generator.config.classes)} classes",
                "pairs fingerprint": plan.pairs_fingerprint,
                "noise": "×".join(map(str, self.generator.latent_shape)),
                "run": plan.run_fingerprint,
            },
            metrics={f"train {k}": v for k, v in self.epochs[-1].items()} | {"diversity, of the data's": measured.mean},
            config=plan.config,
            lora=False,
            classes=self.generator.config.classes,
        )
