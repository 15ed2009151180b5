"""What others do to teach a one-step model its pairs, as arms of the study: on the text-to-image pipeline that ships.

Each follows its paper or its program, written out here in plain PyTorch, and spends the evaluations of a row that every arm may
spend, all its passes counted as they are made. The rows of each update, the noise that is drawn for them and the optimiser are
those of direct SFT.

Axes: n rows of the set, B rows of an update, C × H × W noise and latents.
"""

import copy
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from benchmarks.study.arms import Runs
from ortho_core.errors import UserError
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora import add_lora, merge_adapter
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.losses import mean_square
from ortho_core.mstep.row_order import Order
from ortho_core.mstep.teacher import FrozenTeacher
from ortho_core.mstep.unassigned import UnassignedRows
from ortho_core.mstep.update import make_optimizer
from ortho_core.noise.seeded import noise_seed, seeded_normal
from ortho_core.pairs.decoding import to_images
from ortho_core.pairs.pair_set import PairSet
from rayjobs.train.config import TrainSettings

#: Evaluations that a forward pass without its backward pass counts as.
FORWARD = 1 / 3
#: Rows computed at once where there is no update.
TOGETHER = 64
#: Endings of the names of the linear and convolution layers of the UNet's blocks.
BLOCK_LAYERS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "net.0.proj", "net.2"),
    *("conv1", "conv2", "conv_shortcut", "time_emb_proj"),
)

#: The loss of an update, of the rows with these numbers in that epoch.
Loss = Callable[[int, Tensor], Tensor]


class RivalTraining:
    """A model while a rival trains it: the pairs in memory, the loop, and the evaluations that were spent."""

    def __init__(self, model: Path, pairs: Path, settings: TrainSettings, evaluations: float) -> None:
        """`evaluations`: of a row, all that may be spent."""
        folder = ModelFolder.open(model)
        self.settings, self.evaluations = settings, evaluations
        # Of a diffusers pipeline, whose network and scheduler are spoken to here.
        self.generator: Any = load_generator(folder)
        self.generator.trainable.requires_grad_(True)
        self.base = FrozenTeacher.copy_of(self.generator.trainable)
        source = UnassignedRows(PairSet(str(pairs)), folder.image_size)
        read = source.read(range(len(source)))
        self.order = Order(source.starts, settings.batch_size, settings.seed)
        self.names, self.prompts = [pair.sample_id for pair, _ in read], [pair.prompt for pair, _ in read]
        with torch.no_grad():
            self.condition = PromptCache(self.generator)(self.prompts)
            parts = to_images([image for _, image in read]).split(TOGETHER)
            #: (n, C, H, W).
            self.targets = torch.cat([self.generator.encode_images(part) for part in parts])
        #: Evaluations of all rows together.
        self.spent = 0.0

    @property
    def network(self) -> nn.Module:
        module: nn.Module = self.generator.trainable
        return module

    @property
    def last_signal(self) -> float:
        """ᾱ of the timestep that the one step starts from: its input is √(1 - ᾱ)·ε."""
        return 1 - float(self.generator.step.input_scale) ** 2

    def noise(self, index: Sequence[int] | Tensor, *names: str | int) -> Float[Tensor, "B C H W"]:
        """Noise of rows that depends on the seed, the rows and `names`; for "train" and the epoch that of direct SFT."""
        seeds = [noise_seed(self.settings.seed, *names, self.names[int(i)]) for i in index]
        return seeded_normal(seeds, self.generator.latent_shape)

    def denoise(
        self, noise: Float[Tensor, "B C H W"], index: Tensor, *, frozen: bool = False
    ) -> Float[Tensor, "B C H W"]:
        """The one step at the prompts of rows, `frozen`: of the model as it was; counted."""
        self._count(len(noise))
        with self.base.standing_in(self.generator) if frozen else nullcontext():
            latents: Tensor = self.generator.denoise(noise, self.condition[index])
        return latents

    def velocity(
        self, noisy: Float[Tensor, "B C H W"], timestep: Int[Tensor, " B"], index: Tensor
    ) -> Float[Tensor, "B C H W"]:
        """What the network makes of variance-preserving noisy latents at any timestep; counted."""
        self._count(len(noisy))
        tensors = dict(self.condition[index].tensors)
        hidden = tensors.pop("encoder_hidden_states")
        output: Tensor = self.network(
            noisy, timestep, encoder_hidden_states=hidden, added_cond_kwargs=tensors, return_dict=False
        )[0]
        return output

    def _count(self, rows: int) -> None:
        self.spent += rows * (1 if torch.is_grad_enabled() else FORWARD)

    def epochs(self, each: float, share: float = 1.0) -> int:
        """Epochs that so much of the evaluations is enough for."""
        return max(1, math.floor(share * self.evaluations / each + 1e-9))

    def fit(self, loss: Loss, epochs: int, lr: float, after: Callable[[int], None] = lambda epoch: None) -> None:
        """Train the parameters that ask for gradients; `after` is called with the number of each epoch, from 1."""
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = make_optimizer(self.settings.model_copy(update={"lr": lr}), parameters)
        self.network.train()
        for epoch in range(epochs):
            for step in range(self.order.updates):
                index = torch.from_numpy(np.asarray(self.order.share(epoch, step)))
                loss(epoch, index).backward()
                nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            after(epoch + 1)
        self.network.eval()


@dataclass(frozen=True, kw_only=True)
class Rival(ABC):
    """One way that others have."""

    title: str
    lr: float
    #: Evaluations of a row in one update.
    each: float = 1.0
    #: E-steps, as an arm has them.
    cycles: int = 0

    @abstractmethod
    def teach(self, training: RivalTraining, save: Callable[[int], None]) -> None:
        """Train; `save` is called after every epoch, with its number, where what is there then is a model."""


@dataclass(frozen=True, kw_only=True)
class Immiscible(Rival):
    """Noise is dealt out within a batch so that the way to the target latents is short (arXiv 2406.12303)."""

    def teach(self, training: RivalTraining, save: Callable[[int], None]) -> None:
        def loss(epoch: int, index: Tensor) -> Tensor:
            noise, targets = training.noise(index, "train", epoch), training.targets[index]
            dealt = cheapest(torch.cdist(targets.flatten(1), noise.flatten(1)))
            return mean_square(training.denoise(noise[dealt], index), targets).mean()

        training.fit(loss, training.epochs(self.each), self.lr, save)


@dataclass(frozen=True, kw_only=True)
class Permuted(Rival):
    """Each row has a noise, and before every epoch the rows of a prompt exchange theirs so that the present model's outputs are
    nearest to the targets (after arXiv 1704.05310).
    """

    each: float = 1 + FORWARD
    #: Whether the noises that are exchanged are drawn anew before each epoch.
    fresh: bool = False

    def teach(self, training: RivalTraining, save: Callable[[int], None]) -> None:
        held = training.noise(range(len(training.targets)), "kept", 0)

        def begin(epoch: int) -> None:
            if self.fresh:
                held.copy_(training.noise(range(len(held)), "train", epoch))
            held.copy_(held[permuted_within(training.prompts, outputs_at(training, held), training.targets)])

        def loss(epoch: int, index: Tensor) -> Tensor:
            return mean_square(training.denoise(held[index], index), training.targets[index]).mean()

        def after(epoch: int) -> None:
            save(epoch)
            if epoch < epochs:
                begin(epoch)

        epochs = training.epochs(self.each)
        begin(0)
        training.fit(loss, epochs, self.lr, after)


@dataclass(frozen=True, kw_only=True)
class PairwiseSamples(Rival):
    """Pairwise sample optimisation (arXiv 2410.03190), offline: a target is to become likelier than a sample of the first model
    for the same prompt, by more than it was.

    A likelihood is the error of the one step from an image's own forward-noised latents, at the timestep that the model was
    distilled to; both images of a pair have the same noise.
    """

    each: float = 2 + 2 * FORWARD + FORWARD
    beta: float

    def teach(self, training: RivalTraining, save: Callable[[int], None]) -> None:
        leak = math.sqrt(training.last_signal / (1 - training.last_signal))

        def loss(epoch: int, index: Tensor) -> Tensor:
            with torch.no_grad():
                samples = training.denoise(training.noise(index, "own", epoch), index, frozen=True)
            both, twice = torch.cat([training.targets[index], samples]), index.repeat(2)
            # As noise that the step takes: √(1 - ᾱ) times it is √ᾱ·z + √(1 - ᾱ)·ε.
            noisy = training.noise(index, "train", epoch).repeat(2, 1, 1, 1) + leak * both
            with torch.no_grad():
                before = mean_square(training.denoise(noisy, twice, frozen=True), both)
            return pairwise_loss(mean_square(training.denoise(noisy, twice), both), before, self.beta)

        training.fit(loss, training.epochs(self.each), self.lr, save)


@dataclass(frozen=True, kw_only=True)
class Dedistilled(Rival):
    """An adapter is trained on the model's own samples by the diffusion loss, which undoes the distillation; it is kept on,
    frozen, while the weights learn the targets by the same loss, and taken off (as ai-toolkit trains turbo models).
    """

    adapter_lr: float
    adapter_rank: int = 16
    #: Of the evaluations, for the adapter.
    share: float = 0.5
    #: Timesteps are drawn from this one on.
    first_timestep: int = 0

    def teach(self, training: RivalTraining, save: Callable[[int], None]) -> None:
        network, seed = training.network, training.settings.seed
        before = weights_of(network)

        def own(epoch: int, index: Tensor) -> Tensor:
            with torch.no_grad():
                samples = training.denoise(training.noise(index, "own", epoch), index, frozen=True)
            return self.diffusion(training, "adapter", epoch, samples, index)

        def targets(epoch: int, index: Tensor) -> Tensor:
            return self.diffusion(training, "train", epoch, training.targets[index], index)

        add_lora(network, Lora(self.adapter_rank, float(self.adapter_rank), BLOCK_LAYERS), seed)
        training.fit(own, training.epochs(1 + FORWARD, self.share), self.adapter_lr)
        merge_adapter(network)
        adapted = weights_of(network)
        network.requires_grad_(True)
        training.fit(targets, training.epochs(1, 1 - self.share), self.lr)
        network.load_state_dict(without_adapter(weights_of(network), adapted, before))

    def diffusion(
        self, training: RivalTraining, name: str, epoch: int, latents: Float[Tensor, "B C H W"], index: Tensor
    ) -> Tensor:
        """mean((v_θ(√ᾱ·z + √(1 - ᾱ)·ε, t) - √ᾱ·ε + √(1 - ᾱ)·z)²) at random timesteps (Salimans & Ho 2022)."""
        scheduler, noise = training.generator.pipeline.scheduler, training.noise(index, name, epoch)
        if scheduler.config.prediction_type != "v_prediction":
            raise UserError(f"a network that predicts {scheduler.config.prediction_type}; accepted: v_prediction")
        seeds = [noise_seed(training.settings.seed, name, "timestep", epoch, training.names[int(i)]) for i in index]
        last = len(scheduler.alphas_cumprod)
        timestep = torch.tensor([self.first_timestep + seed % (last - self.first_timestep) for seed in seeds])
        signal = scheduler.alphas_cumprod[timestep].float()[:, None, None, None]
        a, b = signal.sqrt(), (1 - signal).sqrt()
        output = training.velocity(a * latents + b * noise, timestep, index)
        return mean_square(output, a * noise - b * latents).mean()


def cheapest(cost: Float[Tensor, "n n"]) -> Int[Tensor, " n"]:
    """The column of each row, all different, whose costs have the least sum."""
    return torch.from_numpy(linear_sum_assignment(cost.numpy())[1])


def permuted_within(
    prompts: Sequence[str], outputs: Float[Tensor, "n C H W"], targets: Float[Tensor, "n C H W"]
) -> Int[Tensor, " n"]:
    """Which row's output each row gets: one of its own prompt, so that the square errors have the least sum."""
    rows_of: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows_of.setdefault(prompt, []).append(row)
    found = torch.arange(len(prompts))
    for rows in map(torch.tensor, rows_of.values()):
        found[rows] = rows[cheapest(torch.cdist(targets[rows].flatten(1), outputs[rows].flatten(1)).square())]
    return found


@torch.no_grad()
def outputs_at(training: RivalTraining, noise: Float[Tensor, "n C H W"]) -> Float[Tensor, "n C H W"]:
    """What the present model makes of a noise for each row."""
    return torch.cat([training.denoise(noise[index], index) for index in torch.arange(len(noise)).split(TOGETHER)])


def pairwise_loss(errors: Float[Tensor, " 2*B"], before: Float[Tensor, " 2*B"], beta: float) -> Float[Tensor, ""]:
    """-log σ(β·((e₀ - e)(target) - (e₀ - e)(sample))), of the errors of B targets, then of B samples.

    `before`: e₀, those of the frozen model.
    """
    target, sample = (before - errors).chunk(2)
    return -F.logsigmoid(beta * (target - sample)).mean()


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(network.state_dict())


def without_adapter(
    tuned: Mapping[str, Tensor], adapted: Mapping[str, Tensor], before: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What was learned with the adapter on, without it: W + (W + A + D) - (W + A)."""
    return {name: before[name] + (weight - adapted[name]) for name, weight in tuned.items()}


RIVAL_ARMS: dict[str, Rival] = {
    "pso": PairwiseSamples(title="PSO, β = 5", lr=1e-4, beta=5.0),
    "pso_50": PairwiseSamples(title="PSO, β = 50", lr=1e-4, beta=50.0),
    "pso_500": PairwiseSamples(title="PSO, β = 500", lr=1e-4, beta=500.0),
    "dedistilled": Dedistilled(title="de-distillation adapter", lr=5e-4, adapter_lr=5e-4),
    # This model was never distilled from one of many steps: other timesteps are new to it.
    "dedistilled_last": Dedistilled(
        title="the same, at the last timestep alone", lr=5e-4, adapter_lr=5e-4, first_timestep=999
    ),
    "immiscible": Immiscible(title="noise assigned within the batch (immiscible)", lr=1e-3),
    "permuted": Permuted(title="noise permuted within the prompt", lr=1e-3),
}


def epoch_folder(out: Path, epoch: int) -> Path:
    return out / f"checkpoint-epoch-{epoch:03d}"


def run_rival(rival: Rival, training: RivalTraining, out: Path, equal: int) -> None:
    """Train into the folder: `checkpoint-final`, and a folder after `equal` epochs where there is a model then; once.

    Raises UserError if the folder holds another run.
    """
    told = out / "rival.json"
    asked = asdict(rival) | {"settings": training.settings.model_dump(mode="json"), "allowed": training.evaluations}
    if told.exists():
        if {k: v for k, v in json.loads(told.read_text()).items() if k != "spent"} != asked:
            raise UserError(f"{told}: {out} holds a run with other settings")
        return

    def save(epoch: int) -> None:
        if epoch == equal:
            training.generator.save(epoch_folder(out, equal))

    rival.teach(training, save)
    training.generator.save(out / "checkpoint-final")
    told.write_text(json.dumps(asked | {"spent": training.spent / len(training.targets)}, indent=1) + "\n")


@dataclass(frozen=True)
class RivalRuns(Runs):
    """The arms of one seed, the rivals among them."""

    def run(self, name: str) -> dict[str, Path]:
        if name not in RIVAL_ARMS:
            return super().run(name)
        out, protocol = self.folder / name, self.protocol
        settings = protocol.train(self.seed)
        training = RivalTraining(self.lab.base(), self.lab.pairs(self.seed), settings, protocol.evaluations)
        run_rival(RIVAL_ARMS[name], training, out, protocol.equal)
        equal = epoch_folder(out, protocol.equal)
        return {name: out / "checkpoint-final"} | ({f"{name}_equal": equal} if equal.is_dir() else {})
