"""Planned GPU memory compared with live bytes: `python -m benchmarks.memory_plan`.

First with real tensors: the code of every verb runs tiny-turbo on a CPU, and its live bytes are counted (`memory_real.py`).
Then for SDXL at 512 pixels, for GPUs of 12, 24 and 80 GB: `assign`, `train --lora-rank 16` with 4 rows, `evaluate`, each in half
precision. The planner computes its peak from counts at few rows and an allowance. It is compared with the peak of the complete
step at the planned number of rows, which this program builds: slots, generator and loss run on tensors without data, with text
encoders, with images encoded and decoded as planned, and with an independent counter. The model folders have SDXL Turbo's
configurations and no weights. No GPU is needed or measured. An allocator needs more memory than the live bytes; the planner's
allowance is for that.
"""

import argparse
import gc
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch._subclasses import FakeTensorMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.estep_gpu import FULL, random_condition, random_unet
from benchmarks.memory_real import Compared, everything
from benchmarks.mstep import LiveBytes, Network
from benchmarks.results import write_results
from ortho_core.estep.config import AssignConfig
from ortho_core.estep.curvature import Sensitivity
from ortho_core.estep.objective import Reconstruction
from ortho_core.estep.slots import empty_slots
from ortho_core.estep.space import noise_space
from ortho_core.generators.lora import add_lora
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.memory.costs import UpdateCosts, search_costs, update_costs
from ortho_core.memory.plan import (
    GIB,
    MOST_SLOTS,
    SearchPlan,
    UpdatePlan,
    plan_search,
    plan_update,
    smaller_updates,
    usable_bytes,
)
from ortho_core.mstep.config import MStepConfig
from ortho_core.mstep.loss import SftBatch, sft_loss
from ortho_core.mstep.teacher import AdapterTeacher
from ortho_core.mstep.update import make_optimizer
from rayjobs.pool.memory import Searched

ROOT = Path(__file__).resolve().parents[1]
CARDS, SMALL_CARDS = (12, 24, 80), (6, 8, 12)
RANK, ROWS, PRESERVED = 16, 4, 1
M_STEP = MStepConfig(mixed_precision="bf16")
#: SDXL's autoencoder and text encoders.
AUTOENCODER: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
TEXT: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "text_encoder": (
        CLIPTextModel,
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    ),
    "text_encoder_2": (
        CLIPTextModelWithProjection,
        {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
        | {"projection_dim": 1280},
    ),
}


def unet_of(shape: dict[str, Any], dtype: torch.dtype) -> Any:
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    network = random_unet(shape, torch.device("cpu")).requires_grad_(False).eval()
    torch.set_default_dtype(usual)
    return network


def write_folder(folder: Path, shape: dict[str, Any]) -> ModelFolder:
    """A model folder with configurations only, which is what the planner reads."""
    with FakeTensorMode():
        unet_of(shape, torch.float32).save_config(folder / "unet")
        AutoencoderKL(**AUTOENCODER).save_config(folder / "vae")
    parts: dict[str, list[str]] = {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    for name, (kind, settings) in TEXT.items():
        CLIPTextConfig(**settings).save_pretrained(folder / name)
        parts[name] = ["transformers", kind.__name__]
    named = {"_class_name": "StableDiffusionXLPipeline", "scheduler": ["diffusers", "EulerAncestralDiscreteScheduler"]}
    tokenizers = {name: ["transformers", "CLIPTokenizer"] for name in ("tokenizer", "tokenizer_2")}
    (folder / "model_index.json").write_text(json.dumps({**named, **tokenizers, **parts}))
    side = shape["sample_size"]
    return ModelFolder(
        path=folder,
        kind="StableDiffusionXLPipeline",
        latent_shape=(4, side, side),
        target_shape=(4, side, side),
        image_size=(8 * side, 8 * side),
        size_multiple=8,
        recipe=None,
        class_config=None,
        configurations={"sides": str(shape)},
        files=(),
    )


class Whole(Network):
    """The network with the other parts of the pipeline, in half precision except the autoencoder."""

    def __init__(self, shape: dict[str, Any], dtype: torch.dtype) -> None:
        super().__init__(unet_of(shape, dtype))
        self.dtype = dtype
        self.pipeline.vae = AutoencoderKL(**AUTOENCODER).requires_grad_(False).eval()
        torch.set_default_dtype(dtype)
        self.encoders = [kind(CLIPTextConfig(**settings)).eval() for kind, settings in TEXT.values()]
        torch.set_default_dtype(torch.float32)

    def condition(self, rows: int) -> Any:
        return random_condition(self.trainable.config, rows, {"device": "cpu", "dtype": self.dtype})


def alive_in_a_search(shape: dict[str, Any], plan: SearchPlan, dtype: torch.dtype, config: AssignConfig) -> int:
    """The most live bytes while all slots make two evaluations, the next images are encoded and some results decoded."""
    with FakeTensorMode(), LiveBytes() as counted:
        generator = Whole(shape, dtype)
        (C, H, W), S = generator.latent_shape, plan.slots
        objective = Reconstruction(generator, config)
        base, targets = torch.zeros(S, C, H, W), torch.zeros(S, C, H, W)
        inputs = objective.inputs(generator.condition(S), targets, None)
        sensitivity = None
        if config.measures:
            sensitivity = Sensitivity(
                torch.zeros(config.sensitivity_rank, C, H, W), torch.ones(config.sensitivity_rank), 1.0
            )
        kept = generator.condition(3434)  # the most that the prompt cache holds, 1 GiB
        slots = empty_slots(noise_space(config, (C, H, W)), objective, config, sensitivity, base, inputs)
        slots.enter(torch.arange(S), base, torch.zeros_like(slots.x), inputs)
        del inputs, base, targets
        gc.collect()
        counted.peak = counted.live
        slots.step()
        slots.step()
        vae = generator.pipeline.vae
        with torch.no_grad():
            for _ in range(8 // max(1, plan.encoded)):
                vae.encode(torch.zeros(max(1, plan.encoded), 3, 8 * H, 8 * W)).latent_dist.mean  # noqa: B018
            for _ in range(8 // max(1, plan.decoded) if plan.decodes else 0):
                vae.decode(torch.zeros(max(1, plan.decoded), C, H, W))
        del kept
    return counted.peak


def alive_in_an_update(shape: dict[str, Any], plan: UpdatePlan, config: MStepConfig) -> int:
    """The most live bytes in the second of two updates in micro-batches, with the text encoders still on the GPU."""
    with FakeTensorMode(), LiveBytes() as counted, gpu_autocast():
        generator = Whole(shape, torch.bfloat16)
        network = generator.trainable
        if plan.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        with patch.object(nn.Module, "to", lambda self, *_, **__: self):
            add_lora(network, Lora(RANK, float(RANK)), 0)
        generator.pipeline.vae = None  # parked
        parameters = [p for p in network.train().parameters() if p.requires_grad]
        optimizer, teacher = make_optimizer(config, parameters), AdapterTeacher(network)
        _, H, W = generator.latent_shape
        rows, preserved = -(-ROWS // plan.micro_batches), -(-PRESERVED // plan.micro_batches)
        for turn in range(2):
            gc.collect()
            counted.peak = counted.live if turn else counted.peak
            for _ in range(plan.micro_batches):
                noise, held = torch.zeros(rows, 4, H, W), torch.zeros(preserved, 4, H, W)
                batch = SftBatch(noise, generator.condition(rows), noise, None, held, generator.condition(preserved))
                with torch.autocast("cpu", torch.bfloat16):
                    loss = sft_loss(generator, teacher, batch, config)["loss"]
                loss.backward()
                del loss
            optimizer.step()
            optimizer.zero_grad()
    return counted.peak


class gpu_autocast:
    """Computes layer and group norms in float32, as autocast does on a GPU, but not on a CPU."""

    def __enter__(self) -> None:
        self.usual = nn.LayerNorm.forward, nn.GroupNorm.forward

        def whole(forward: Any) -> Any:
            def called(module: Any, x: torch.Tensor) -> torch.Tensor:
                if not torch.is_autocast_enabled("cpu"):
                    return forward(module, x)
                with torch.autocast("cpu", enabled=False):
                    weight, bias = module.weight.float(), module.bias.float()
                    if isinstance(module, nn.GroupNorm):
                        return nn.functional.group_norm(x.float(), module.num_groups, weight, bias, module.eps)
                    return nn.functional.layer_norm(x.float(), module.normalized_shape, weight, bias, module.eps)

            return called

        nn.LayerNorm.forward, nn.GroupNorm.forward = (whole(forward) for forward in self.usual)

    def __exit__(self, *_: object) -> None:
        nn.LayerNorm.forward, nn.GroupNorm.forward = self.usual


def searches(model: ModelFolder, shape: dict[str, Any], cards: tuple[int, ...]) -> list[dict[str, Any]]:
    """The rows of `assign`, and of `evaluate` with its small judges."""
    found = []
    for verb, config in (("assign", AssignConfig()), ("evaluate", AssignConfig(steps=20, patience=0))):
        costs = search_costs(model, "float16", config)
        for card in cards:
            plan = plan_search(costs, usable_bytes(card * GIB), MOST_SLOTS, 10_000, decodes=verb != "assign")
            alive = alive_in_a_search(shape, plan, torch.float16, config)
            row = {"verb": verb, "card": card, "chosen": f"{plan.slots} slots", "fits": plan.fits}
            found.append(row | filled(plan.peak, alive, card) | {"decoded": plan.decoded, "encoded": plan.encoded})
    return found


def adapter_costs(model: ModelFolder, quantize: str, checkpointing: bool) -> UpdateCosts:
    """The costs of an adapter's update over a base packed by `quantize`."""
    return update_costs(
        model,
        M_STEP,
        dtype="bfloat16",
        lora=Lora(RANK, float(RANK)),
        gradient_checkpointing=checkpointing,
        second_network=False,
        quantize=quantize,
    )


def updates(model: ModelFolder, shape: dict[str, Any], cards: tuple[int, ...]) -> list[dict[str, Any]]:
    """`train --lora-rank 16 --batch-size 4 --mixed-precision bf16`; if it does not fit, with the dry run's changes."""
    costs, found = partial(adapter_costs, model, "none"), []
    for card in cards:
        counted = costs(False)
        parked = counted.weights.autoencoder
        plan = plan_update(counted, usable_bytes(card * GIB), ROWS, PRESERVED, 1, parked, False)
        if not plan.fits:
            plan = next(p for p in smaller_updates(plan, costs, ROWS, PRESERVED, parked) if p.fits)
        alive = alive_in_an_update(shape, plan, M_STEP)
        chosen = f"{plan.micro_batches} micro-batches" + (", checkpointed" if plan.gradient_checkpointing else "")
        row = {"verb": f"train --lora-rank {RANK}", "card": card, "chosen": chosen, "fits": plan.fits}
        found.append(row | filled(plan.peak, alive, card))
    return found


def packed(model: ModelFolder, cards: tuple[int, ...]) -> list[dict[str, Any]]:
    """`assign` and `train` as above on small GPUs, by quantisation, with the options that the worker chooses automatically."""
    found = []
    for kind in ("none", "int8", "nf4"):
        searched = Searched(model, "float16", AssignConfig(), MOST_SLOTS, 10_000, decodes=False, quantize=kind)
        for card in cards:
            plan = searched.fitting(usable_bytes(card * GIB))
            found.append({"verb": "assign", "quantize": kind, "card": card, **plan.as_json()})
        costs = partial(adapter_costs, model, kind)
        for card in cards:
            counted = costs(False)
            parked, usable = counted.weights.autoencoder, usable_bytes(card * GIB)
            asked = plan_update(counted, usable, ROWS, PRESERVED, 1, parked, False)
            smaller = [] if asked.fits else list(smaller_updates(asked, costs, ROWS, PRESERVED, parked))
            plan = next((p for p in smaller if p.fits), smaller[-1] if smaller else asked)
            row = {"verb": f"train --lora-rank {RANK}", "quantize": kind, "card": card, **plan.as_json()}
            found.append(row | {"micro_batches": plan.micro_batches})
    return found


def filled(planned: int, alive: int, card: int) -> dict[str, Any]:
    return {
        "planned_gib": round(planned / GIB, 2),
        "alive_gib": round(alive / GIB, 2),
        "planned_over_alive": round(planned / alive, 3),
        "of_the_card": round(planned / GIB / card, 3),
    }


def of_real(compared: Compared) -> dict[str, Any]:
    figures = {"planned_mb": compared.planned / 1e6, "counted_mb": compared.counted / 1e6, "ratio": compared.ratio}
    return {"verb": compared.verb, "rows": compared.rows, **{name: round(each, 3) for name, each in figures.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cards", type=int, nargs="+", default=list(CARDS), help="GiB of each")
    parser.add_argument("--only", choices=("real", "cards", "packed"), help="one of the three tables")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    shape, began = FULL, time.perf_counter()
    rows: list[dict[str, Any]] = []
    if args.only in (None, "real"):
        rows += map(of_real, everything(ModelFolder.open(ROOT / "models" / "tiny-turbo"), ROOT / "examples" / "digits"))
    if args.only != "real":
        with tempfile.TemporaryDirectory() as scratch:
            model = write_folder(Path(scratch), shape)
            if args.only != "packed":
                rows += [*searches(model, shape, tuple(args.cards)), *updates(model, shape, tuple(args.cards))]
            if args.only != "cards":
                rows += packed(model, SMALL_CARDS)
    for row in rows:
        print(json.dumps(row))
    found = {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "rows": rows}
    write_results(found | {"seconds": round(time.perf_counter() - began, 1)}, args.out)


if __name__ == "__main__":
    main()
