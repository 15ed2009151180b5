"""The M-step's cost: `python -m benchmarks.mstep --out runs/mstep.json`. Five tables, each a ratio within one run.

parts: an update (share to device, prompts from the cache, loss, backward, clipping, optimiser) over the sum of its bare parts: a
forward, backward and optimiser step of the student and a forward of the teacher, with the same batch.
matching: an update with a search of 2, 4 and 6 evaluations over one without a search, and a search of 6 evaluations over its bare
evaluations, a forward and a backward pass each.
reference: updates per second over a loop that encodes the batch's prompts and images at every step, calls the student once for
the matched and once for the preserve noise, and has a second pipeline for the teacher.
workers: `ortho train` with two workers of one thread over one worker, same total batch; and the difference of their losses.
memory: peak of one update with LoRA over one of all weights at SDXL's size: measured with a GPU, else counted from the live
tensors, which have no data.
"""

import argparse
import copy
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from benchmarks.estep_gpu import FULL, SMALL, random_condition, random_unet
from benchmarks.estep_throughput import synchronize, timed
from benchmarks.results import write_results
from ortho_core.generators.diffusers_pipelines import DiffusersGenerator
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora import add_lora
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.one_step import OneStep
from ortho_core.generators.pipelines.kinds import ADAPTERS
from ortho_core.generators.prompt_cache import PromptCache
from ortho_core.generators.protocol import Condition
from ortho_core.losses import mean_square
from ortho_core.memory.live import LiveBytes
from ortho_core.mstep.config import MatchingConfig, MStepConfig, SftConfig
from ortho_core.mstep.data import MatchedData, to_batch
from ortho_core.mstep.loss import SftBatch, sft_loss
from ortho_core.mstep.matching import OnlineMatching, match_search
from ortho_core.mstep.row_order import Order
from ortho_core.mstep.teacher import AdapterTeacher, FrozenTeacher
from ortho_core.mstep.update import MStep, make_optimizer
from ortho_core.pairs.decoding import to_images
from ortho_core.pairs.pair_set import PairSet
from ortho_core.records.assignments import Assignments

MODEL, PAIRS = Path("models/tiny-turbo"), Path("examples/digits")


def assigned(folder: Path) -> Path:
    """Cheap assignments of the example digits, since the quality of the noise does not matter here."""
    from rayjobs.assign import job as assign

    job = assign.AssignJob(pairs=str(PAIRS), model=MODEL, out=str(folder / "assignments"), steps=2, workers="1")
    assign.run(job)
    return folder / "assignments"


def data_of(assignments: Path, batch_size: int) -> MatchedData:
    source = Assignments(assignments)
    order = Order(source.starts, batch_size, 0)
    return MatchedData(source, order, (4, 8, 8), (32, 32), "matched", 0, PairSet(PAIRS), preserve_rows=batch_size)


def in_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each call. Every round makes each call once; the first round does not count."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for k in range(rounds + 1):
        for name, call in calls.items():
            seconds = timed(call)
            if k:
                found[name].append(seconds)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def our_step(data: MatchedData) -> tuple[MStep, Callable[[], None]]:
    """The update of `ortho train` on shares that are read before; all prompts are in the cache."""
    generator = load_generator(ModelFolder.open(MODEL))
    generator.trainable.requires_grad_(True)
    step = MStep(generator, MStepConfig(), 10_000)
    prompts, shares = PromptCache(generator), [data.share(0, k) for k in range(data.order.updates)]
    prompts([p for share in shares for p in share.prompts])
    turn = iter(range(10**9))

    def once() -> None:
        step.update(to_batch(shares[next(turn) % len(shares)], generator, prompts, False))

    return step, once


def parts(data: MatchedData, rounds: int) -> dict[str, float]:
    """The time of an update over that of its bare parts."""
    _, once = our_step(data)
    generator = load_generator(ModelFolder.open(MODEL))
    teacher = copy.deepcopy(generator.trainable)
    generator.trainable.requires_grad_(True)
    optimizer = torch.optim.AdamW(generator.trainable.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    share = data.share(0, 0)
    batch = to_batch(share, generator, PromptCache(generator), False)
    assert batch.preserve_noise is not None
    assert batch.preserve_condition is not None
    noise = torch.cat([batch.noise, batch.preserve_noise])
    condition = Condition.cat([batch.condition, batch.preserve_condition])
    student = generator.trainable

    def bare() -> None:
        generator.trainable = teacher
        with torch.no_grad():
            generator.denoise(noise[len(batch.noise) :], batch.preserve_condition)
        generator.trainable = student
        generator.denoise(noise, condition).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = in_turns({"update": once, "bare": bare}, rounds)
    return {**seconds, "over_bare": seconds["update"] / seconds["bare"]}


def matching(data: MatchedData, rounds: int) -> dict[str, float]:
    """The time of updates with a search before them over that of updates without."""
    step, _ = our_step(data)
    generator, search = step.generator, match_search(MatchingConfig(match_steps="6"), step.config, None)
    batch = to_batch(data.share(0, 0), generator, PromptCache(generator), False)
    online = OnlineMatching(generator, step.parameters, search)
    online(batch, 1)  # measures the sensitivity
    frozen = load_generator(ModelFolder.open(MODEL))

    def bare() -> None:
        for _ in range(6):
            noise = batch.noise.clone().requires_grad_(True)
            total = mean_square(frozen.denoise(noise, batch.condition), batch.target_latents).sum()
            torch.autograd.grad(total, noise)

    calls: dict[str, Callable[[], Any]] = {
        "matched": lambda: step.update(batch),
        **{str(n): lambda n=n: step.update(online(batch, n)[0]) for n in (2, 4, 6)},
        "search": lambda: online(batch, 6),
        "bare": bare,
    }
    seconds = in_turns(calls, rounds)
    over = {f"{n}_over_matched": seconds[n] / seconds["matched"] for n in ("2", "4", "6")}
    return {**seconds, **over, "search_over_bare": seconds["search"] / seconds["bare"]}


def reference_step(data: MatchedData) -> Callable[[], None]:
    """The reference loop: prompts and targets encoded at every step, two calls of the student, a second pipeline as teacher."""
    student, teacher = load_generator(ModelFolder.open(MODEL)), load_generator(ModelFolder.open(MODEL))
    student.trainable.requires_grad_(True)
    optimizer = torch.optim.AdamW(student.trainable.parameters(), lr=1e-4, weight_decay=0.0)
    config = SftConfig()
    pictured = MatchedData(**{**vars(data), "needs_images": True})
    shares = [pictured.share(0, k) for k in range(data.order.updates)]
    turn = iter(range(10**9))

    def once() -> None:
        share = shares[next(turn) % len(shares)]
        assert share.images is not None
        with torch.no_grad():
            condition = student.encode_prompts(share.prompts)
            targets = student.encode_images(to_images(list(share.images)))
            fresh = torch.randn(len(share.prompts), *student.latent_shape)
            before = teacher.denoise(fresh, teacher.encode_prompts(share.prompts))
        matched = student.denoise(torch.from_numpy(share.noise), condition)
        loss = config.latent_loss_weight * (matched - targets).square().mean()
        loss = loss + config.preserve_latent_weight * (student.denoise(fresh, condition) - before).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.trainable.parameters(), 1.0)
        optimizer.step()

    return once


def reference(data: MatchedData, rounds: int) -> dict[str, float]:
    """Our update compared with the reference's."""
    _, once = our_step(data)
    seconds = in_turns({"ours": once, "reference": reference_step(data)}, rounds)
    B = data.order.batch_size
    return {
        "images_per_second": B / seconds["ours"],
        "reference_images_per_second": B / seconds["reference"],
        "over_reference": seconds["reference"] / seconds["ours"],
    }


def workers(assignments: Path, folder: Path, batch_size: int, epochs: int, rounds: int) -> dict[str, Any]:
    """`ortho train` with one worker and with two, in turns."""
    from rayjobs.train import job as train

    speeds: dict[int, list[float]] = {1: [], 2: []}
    losses: dict[int, list[float]] = {}
    for k in range(rounds):
        for count in speeds:
            out = folder / f"workers-{count}-{k}"
            job = train.TrainJob(
                assignments=str(assignments),
                model=MODEL,
                out=out,
                batch_size=batch_size,
                epochs=epochs,
                num_workers=count,
                save_every=0,
                cpus_per_worker=0.5,
                tensorboard=False,
            )
            train.run(job)
            summary = json.loads((out / "train_summary.json").read_text())
            speeds[count].append(summary["images_per_second"])
            losses[count] = [epoch["loss"] for epoch in summary["epochs"]]
    one, two = (statistics.median(speeds[count]) for count in (1, 2))
    apart = max(abs(a - b) for a, b in zip(losses[1], losses[2], strict=True))
    return {"images_per_second": {"1": one, "2": two}, "two_over_one": two / one, "losses_apart": apart}


class Network(DiffusersGenerator):
    """Only the generator's network: text encoders and autoencoder are not on the device during training."""

    def __init__(self, unet: Any) -> None:
        side = unet.config.sample_size
        self.pipeline, self.trainable = SimpleNamespace(unet=unet), unet
        self.adapter, self.guidance_input = ADAPTERS["StableDiffusionXLPipeline"], None
        self.latent_shape, self.image_size = (4, side, side), (8 * side, 8 * side)
        self.step = OneStep(timestep=999, input_scale=1.0, noise_weight=0.5, output_weight=0.5)


def update_at_size(shape: dict[str, Any], device: torch.device, rank: int, rows: int) -> Callable[[], None]:
    """Builds a random model of that size; returns its update of all weights (rank 0) or of an adapter."""
    dtype = torch.bfloat16 if rank else torch.float32
    usual = torch.get_default_dtype()
    torch.set_default_dtype(
        dtype
    )  # tensors without data can be neither converted in place nor copied with their module
    network: Any = random_unet(shape, device).requires_grad_(False)
    frozen = None if rank else FrozenTeacher(random_unet(shape, device))
    torch.set_default_dtype(usual)
    generator = Network(network)
    if rank:
        with patch.object(nn.Module, "to", lambda self, *_, **__: self):  # PEFT moves layers to where they already are
            add_lora(network, Lora(rank, float(rank)), 0)
    else:
        network.requires_grad_(True)
    teacher = frozen or AdapterTeacher(network)
    config = MStepConfig(mixed_precision="bf16")
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = make_optimizer(config, parameters)
    condition = random_condition(network.config, rows, {"device": device, "dtype": dtype})
    noise = torch.randn(rows, 4, shape["sample_size"], shape["sample_size"], device=device)
    batch = SftBatch(noise, condition, noise, None, noise, condition)

    def once() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = sft_loss(generator, teacher, batch, config)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return once


def counted_peak(shape: dict[str, Any], rank: int, rows: int) -> int:
    """The most live bytes in two updates; the second has the optimiser's state from the start."""
    with LiveBytes() as counted:
        once = update_at_size(shape, torch.device("cpu"), rank, rows)
        gc.collect()
        counted.peak = counted.live
        for _ in range(2):
            once()
    return counted.peak


def memory(rows: int, rank: int, small: bool) -> dict[str, Any]:
    """The peak of an update of all weights, and of an adapter's update, in GiB."""
    cuda = torch.cuda.is_available()
    found: dict[str, Any] = {"rows": rows, "rank": rank, "how": "measured" if cuda else "counted from live tensors"}
    shape, without_numbers = SMALL if small else FULL, FakeTensorMode()
    for name, size in (("full", 0), ("lora", rank)):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            once = update_at_size(shape, torch.device("cuda"), size, rows)
            for _ in range(2):
                once()
            synchronize(torch.device("cuda"))
            peak = torch.cuda.max_memory_allocated()
            del once
            gc.collect()
            torch.cuda.empty_cache()
        else:
            with without_numbers:
                peak = counted_peak(shape, size, rows)
            gc.collect()
        found[f"{name}_gib"] = peak / 2**30
    return {**found, "lora_over_full": found["lora_gib"] / found["full_gib"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=("parts", "matching", "reference", "workers", "memory"), nargs="+")
    parser.add_argument("--batch-size", type=int, default=16, help="of the workers table")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16], help="of the first three tables")
    parser.add_argument("--epochs", type=int, default=6, help="of the runs of the workers table")
    parser.add_argument("--rounds", type=int, default=30, help="updates of each kind (the workers table: a tenth)")
    parser.add_argument("--rank", type=int, default=16, help="of the adapter in the memory table")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4], help="rows at once, and preserve rows, in it")
    parser.add_argument("--small", action="store_true", help="the memory table in miniature")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    chosen = args.only or ["parts", "matching", "reference", "workers", "memory"]
    found: dict[str, Any] = {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if set(chosen) - {"memory"}:
            assignments = assigned(folder)
        for name, measure in (("parts", parts), ("matching", matching), ("reference", reference)):
            if name in chosen:
                found[name] = {B: measure(data_of(assignments, B), args.rounds) for B in args.batch_sizes}
        if "workers" in chosen:
            found["workers"] = workers(assignments, folder, args.batch_size, args.epochs, max(1, args.rounds // 10))
    if "memory" in chosen:
        found["memory"] = [memory(rows, args.rank, args.small) for rows in args.rows]
    print(json.dumps(found, indent=1))
    write_results(found, args.out)


if __name__ == "__main__":
    main()
