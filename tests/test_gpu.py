"""SDXL at its real size on a GPU that is not there: nothing is mixed up, nothing waits, and what it takes is what is planned."""

import gc
from pathlib import Path

import pytest
import torch
import torchgen
import yaml
from torch.utils._python_dispatch import _disable_current_modes as host
from transformers import CLIPConfig, CLIPModel

from ortho_core.estep.config import AssignConfig, SearchConfig
from ortho_core.estep.engine import Engine
from ortho_core.estep.objective import Reconstruction
from ortho_core.estep.queue import requests_of
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.mstep.config import MStepConfig
from ortho_core.mstep.loss import SftBatch
from ortho_core.mstep.teacher import AdapterTeacher, FrozenTeacher
from ortho_core.mstep.update import MStep
from ortho_core.rewards.aesthetic import Aesthetic, AestheticPredictor
from ortho_core.rewards.base import Preprocessing
from ortho_core.rewards.clip import Clip, ClipTower
from ortho_core.rewards.combined import WeightedSum
from ortho_core.rewards.objective import RewardObjective
from tests import sdxl
from tests.fake_gpu import FakeGpu, GiB

on_apples_gpu = pytest.mark.parametrize("both_steps", ["mps:0"], indirect=True)
BF16, F32 = torch.bfloat16, torch.float32


@pytest.fixture
def gpu():
    with FakeGpu() as gpu:
        yield gpu
    gc.collect()


@pytest.fixture
def generator(gpu):
    return sdxl.generator(gpu.device, BF16)


def count(gpu, generator, config, objective, inputs, slots, gib, tflop):
    """Search the noise of as many images as there are slots; what a slot takes, and an evaluation."""
    engine = Engine(generator, config, slots, objective)
    gpu.reset()
    before = gpu.live
    assert len(list(engine.run(requests_of(range(slots), range(slots), inputs)))) == slots
    assert not gpu.waits
    assert engine.computed == slots * config.steps
    assert (gpu.peak - before) / slots == pytest.approx(gib * GiB, rel=0.05)
    assert gpu.flops / engine.computed == pytest.approx(tflop * 1e12, rel=0.01)


def pairs(gpu, count, images=False):
    """Encoded prompts, targets and images of as many pairs."""
    condition = sdxl.condition(count, gpu.device, BF16)
    return condition, sdxl.latents(count, gpu.device), torch.empty(count, 3, 512, 512, device=gpu.device)


@pytest.mark.parametrize(("pixel", "gib", "tflop"), [(0.0, 1.28, 3.21), (1.0, 6.95, 8.29)], ids=["latent", "pixel"])
def test_an_evaluation_waits_for_nothing(gpu, generator, pixel, gib, tflop):
    config = AssignConfig(steps=1, sensitivity_rank=0, pixel_l1_weight=pixel)
    objective = Reconstruction(generator, config)
    count(gpu, generator, config, objective, objective.inputs(*pairs(gpu, 2)), 2, gib, tflop)


def test_an_evaluation_of_rewards_waits_for_nothing(gpu, generator):
    towers = clip_tower(gpu)
    predictor = sdxl.place(AestheticPredictor(towers.width).requires_grad_(False), gpu.device, F32)
    rewards = WeightedSum(
        {"clip": Clip(towers), "aesthetic": Aesthetic(towers, predictor)}, {"clip": 0.25, "aesthetic": 1}
    )
    objective, config = RewardObjective(generator, rewards), SearchConfig(steps=1, sensitivity_rank=0)
    encoded = {"clip/text": (768,), "aesthetic/nothing": (0,)}
    texts = {name: torch.empty(1, *shape, device=gpu.device) for name, shape in encoded.items()}
    inputs = objective.inputs(sdxl.condition(1, gpu.device, BF16), texts)
    count(gpu, generator, config, objective, inputs, 1, 6.99, 8.62)


def clip_tower(gpu) -> ClipTower:
    """CLIP ViT-L/14, by its published configuration."""
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    }
    with host(), torch.device("meta"):
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=768))
    return ClipTower(sdxl.place(model.requires_grad_(False), gpu.device, BF16), None, Preprocessing(224))


@pytest.mark.parametrize(
    ("adapter", "gib", "tflop"),
    [(True, 8.63, 7.97), (False, 47.8, 11.07)],
    ids=["lora", "full"],
)
@pytest.mark.slow
def test_an_update_waits_once_for_its_figures(gpu, adapter, gib, tflop):
    """One row of each term; the bytes are with weights, gradients and the optimiser's state."""
    generator = sdxl.generator(gpu.device, BF16 if adapter else F32, Lora(16, 16.0) if adapter else None)
    network = generator.trainable
    if adapter:
        teacher = AdapterTeacher(network)
    else:
        network.requires_grad_(True)
        teacher = FrozenTeacher(sdxl.generator(gpu.device, F32).trainable)
    generator.pipeline.vae = None
    step = MStep(generator, MStepConfig(mixed_precision="bf16"), 10, teacher=teacher)
    condition = sdxl.condition(1, gpu.device, BF16 if adapter else F32)
    targets = sdxl.latents(1, gpu.device)
    noise = sdxl.latents(1, gpu.device)
    gpu.reset()
    step.update(SftBatch(noise, condition, targets, None, noise, condition))
    assert sum(gpu.waits.values()) == 1, gpu.waits
    assert gpu.peak == pytest.approx(gib * GiB, rel=0.05)
    assert gpu.flops == pytest.approx(tflop * 1e12, rel=0.01)


def test_images_are_made_and_encoded_without_a_wait(gpu, generator):
    _, latents, images = pairs(gpu, 8)
    for work, given, gib, tflop in (
        (generator.decode, latents, 0.75, 2.51),
        (generator.encode_images, images, 0.625, 1.117),
    ):
        gpu.reset()
        before = gpu.live
        with torch.no_grad():
            work(given)
        assert not gpu.waits
        assert gpu.peak - before == pytest.approx(8 * gib * GiB, rel=0.05)
        assert gpu.flops == pytest.approx(8 * tflop * 1e12, rel=0.01)


#: As many rows as are measured in two batches; operations are counted, not their sizes.
ROWS = 16


@pytest.fixture(scope="module")
def both_steps(request, tiny_turbo):
    """All kinds of search and an update of tiny-turbo; what they were on, and the waits of each."""
    folder = ModelFolder.open(tiny_turbo)
    generator, teacher = load_generator(folder), load_generator(folder).trainable
    waits = []

    def search(config: AssignConfig) -> None:
        """Counted once what a worker measures beforehand is there."""
        objective = Reconstruction(generator, config)
        engine = Engine(generator, config, ROWS, objective)
        inputs = objective.blank_inputs(ROWS)
        for _ in range(2 if config.measures else 1):
            gpu.waits.clear()
            assert len(list(engine.run(requests_of(range(ROWS), range(ROWS), inputs)))) == ROWS
        waits.append(dict(gpu.waits))

    with FakeGpu(request.param) as gpu:
        pipeline = generator.pipeline
        networks = pipeline.unet, pipeline.text_encoder, pipeline.text_encoder_2
        for part in (*networks, pipeline.vae, teacher):
            sdxl.place(part, gpu.device, F32)
        search(AssignConfig(steps=1, pixel_l1_weight=1.0, drift_reg_weight=1.0))
        search(AssignConfig(steps=2, optimizer="adamw"))
        search(AssignConfig(steps=3, sensitivity_rank=0, transform="free", prior_weight=1.0, patience=1))
        for part in networks:
            sdxl.place(part, gpu.device, torch.float16)
        search(AssignConfig(steps=1, sensitivity_rank=0, patch_size=4, regions=2))
        for part in networks:
            sdxl.place(part, gpu.device, F32)
        pipeline.unet.requires_grad_(True)
        config = MStepConfig(pixel_l1_weight=1.0, preserve_pixel_weight=1.0, ema=True)
        noise, condition = generator.base_noise([1, 2]), generator.encode_prompts(["a", "b"])
        images = torch.zeros(2, 3, *generator.image_size, device=gpu.device)
        step = MStep(generator, config, 10, teacher=FrozenTeacher(teacher))
        batch = SftBatch(noise, condition, noise, images, noise, condition)
        step.update(batch)
        gpu.waits.clear()
        step.update(batch)
        waits.append(dict(gpu.waits))
    return gpu, waits


@pytest.mark.parametrize("both_steps", ["cuda:0", "mps:0"], indirect=True)
def test_whatever_is_searched_waits_for_nothing_and_an_update_once(both_steps):
    gpu, (*searches, update) = both_steps
    if gpu.device.type == "cuda":  # of Apple's GPU the memory is the host's
        assert searches == [{}] * 4
    assert len(update) == 1
    assert set(update.values()) == {1}


@on_apples_gpu
def test_apples_gpu_is_given_no_float64(both_steps):
    gpu, _ = both_steps
    assert torch.float64 not in gpu.dtypes


@on_apples_gpu
def test_apples_gpu_has_every_operation(both_steps):
    """By PyTorch's own table of what is implemented where. Attention is PyTorch's choice, and there another."""
    table = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native" / "native_functions.yaml"
    functions = {each["func"].partition("(")[0]: each for each in yaml.load(table.read_text(), yaml.CSafeLoader)}

    def implemented(operation) -> bool:
        entry = functions[str(operation).removeprefix("aten.").removesuffix(".default")]
        entry = functions[entry.get("structured_delegate", entry["func"].partition("(")[0])]
        places = ",".join(entry.get("dispatch", ["Composite"])).replace(" ", "").split(",")
        return any(place == "MPS" or place.startswith("Composite") for place in places)

    missing = {str(operation) for operation in both_steps[0].ops if not implemented(operation)}
    assert {name for name in missing if "attention" not in name} == set()
