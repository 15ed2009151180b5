"""Class-conditional generators: the protocol, the folder, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ortho_core.errors import UserError
from ortho_core.generators.class_conditional import ClassGenerator, ClassNetwork
from ortho_core.generators.class_config import ClassConfig
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora_files import LORA_WEIGHTS
from ortho_core.generators.lora_reference import write_lora_reference
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.protocol import OneStepGenerator
from ortho_core.noise.rotation import rotate, skew_parameters
from tests.ortho_core.pairs.made import write_images, write_lines

CLASSES = ("airplane", "ship", "1")
#: Noise, image: maps that are cut to size or fit, and flat noise.
SHAPES = [((4, 8, 8), (1, 28, 28)), ((4, 8, 8), (3, 32, 32)), ((12, 1, 1), (1, 28, 28)), ((12, 1, 1), (3, 30, 21))]


def make(noise=(4, 8, 8), image=(1, 28, 28), **options) -> ClassGenerator:
    torch.manual_seed(0)
    config = ClassConfig(classes=CLASSES, noise_shape=noise, image_shape=image, widths=(16, 8, 8), **options)
    return ClassGenerator(config, ClassNetwork(config).requires_grad_(False).eval())


@pytest.mark.parametrize(("noise", "image"), SHAPES)
def test_a_saved_folder_loads_as_the_same_generator_and_says_its_shapes(noise, image, tmp_path):
    made = make(noise, image)
    made.save(tmp_path / "model", card="# a card\n")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["README.md", "config.json", "network.safetensors"]
    folder = ModelFolder.open(tmp_path / "model")
    loaded = load_generator(folder)
    assert isinstance(loaded, OneStepGenerator)
    condition, base = loaded.encode_prompts(["ship", "airplane"]), loaded.base_noise([3, 4])
    assert torch.equal(loaded.denoise(base, condition), made.denoise(base, condition))
    assert base.shape[1:] == loaded.latent_shape == folder.latent_shape == noise
    assert loaded.denoise(base, condition).shape[1:] == folder.target_shape == image
    assert loaded.image_size == folder.image_size == image[1:]
    assert (folder.classes, folder.kind) == (CLASSES, "class-conditional")
    before = folder.fingerprint
    made.network.leave[0].bias.add_(1.0)
    made.save(tmp_path / "model")
    assert ModelFolder.open(tmp_path / "model").fingerprint != before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("image", [(1, 28, 28), (3, 32, 32)])
def test_encoding_and_decoding_are_the_pixels(image):
    generator = make(image=image)
    pixels = torch.rand(2, 3, *image[1:])
    if image[0] == 1:
        pixels = pixels[:, :1].expand(-1, 3, -1, -1)
    targets = generator.encode_images(pixels)
    assert targets.shape[1:] == image
    assert targets.min() >= -1
    torch.testing.assert_close(generator.decode(targets), pixels)


@pytest.mark.parametrize(("noise", "image"), SHAPES)
def test_gradient_reaches_the_noise_and_the_skew_of_its_rotation(noise, image):
    generator = make(noise, image)
    p = 2 if noise[1] > 1 else 1
    base, condition = generator.base_noise([1, 2]), generator.encode_prompts(["ship", "1"])
    skew = torch.zeros(2, skew_parameters(noise[0] * p * p), dtype=torch.float64, requires_grad=True)
    generator.network.double()
    target = torch.zeros(2, *image)

    def loss(skew):
        made = generator.network(rotate(base.double(), skew, p), condition.tensors["classes"].double())
        return (made - target).square().mean()

    loss(skew).backward()
    direction = torch.randn(skew.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h = 1e-4
    slope = (loss(skew.detach() + h * direction) - loss(skew.detach() - h * direction)) / (2 * h)
    assert float((skew.grad * direction).sum()) == pytest.approx(float(slope), rel=1e-4)


def test_noise_and_class_both_decide_the_image():
    generator = make()
    base = generator.base_noise([1, 1, 2])
    images = generator.denoise(base, generator.encode_prompts(["ship", "airplane", "ship"]))
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_a_prompt_is_a_name_or_a_number_and_a_name_comes_first():
    generator = make()
    rows = generator.encode_prompts(["ship", "1", "0", "2", ""]).tensors["classes"]
    assert rows.argmax(1).tolist()[:4] == [1, 2, 0, 2]
    assert rows.sum(1).tolist() == [1, 1, 1, 1, 0]
    for prompt in ("boat", "3", "-1", " ", "١", "Ship"):
        with pytest.raises(UserError, match=r"is no class; accepted: airplane, ship, 1, or a number from 0 to 2"):
            generator.encode_prompts(["ship", prompt])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"noise": (4, 4, 4)}, "grows to 16×16 pixels, smaller than 28×28 images"),
        ({"image": (2, 28, 28)}, "image_shape"),
        ({"noise": (4, 0, 8)}, "all positive"),
    ],
)
def test_shapes_that_make_no_network_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        make(**options)


def test_a_broken_folder_is_told_by_its_file(tmp_path):
    folder = tmp_path / "model"

    def refused(says):
        with pytest.raises(UserError, match=says) as raised:
            load_generator(ModelFolder.open(folder))
        assert "\n" not in str(raised.value)

    make().save(folder)
    weights = load_file(folder / "network.safetensors")
    save_file({k: v for k, v in weights.items() if k != "classes.bias"}, folder / "network.safetensors")
    refused(r"network\.safetensors does not fit config\.json beside it")
    (folder / "network.safetensors").write_bytes(b"none")
    refused(r"network\.safetensors does not fit config\.json beside it")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "widths": [7, 8]}))
    refused(r"config\.json is not valid for a class-conditional generator: .*widths must be multiples of 8")
    (folder / "config.json").write_text(json.dumps({**config, "kind": "other"}))
    refused(r"not a model folder: no model_index\.json .* no config\.json of kind class-conditional")


def test_what_is_for_pipelines_is_refused(tmp_path):
    make().save(tmp_path / "model")
    with pytest.raises(UserError, match=r"--gradient-checkpointing: .* is class-conditional"):
        load_generator(ModelFolder.open(tmp_path / "model"), gradient_checkpointing=True)
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / LORA_WEIGHTS).write_bytes(b"weights")
    base = ModelFolder.open(tmp_path / "model")
    write_lora_reference(tmp_path / "lora", base.path, base.fingerprint)
    with pytest.raises(UserError, match="class-conditional, which has no adapters"):
        ModelFolder.open(tmp_path / "lora")


def test_half_precision_keeps_float32_outside(tmp_path):
    make().save(tmp_path / "model")
    generator = load_generator(ModelFolder.open(tmp_path / "model"), dtype="bfloat16")
    exact = make()
    base, condition = exact.base_noise([1, 2]), exact.encode_prompts(["ship", "1"])
    images = generator.denoise(base, condition)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, exact.denoise(base, condition), rtol=0.1, atol=0.05)


def test_a_row_whose_prompt_is_no_class_is_quarantined_and_the_others_are_as_without_it(tmp_path):
    from ortho_core.estep.config import AssignConfig
    from ortho_core.estep.objective import Reconstruction
    from ortho_core.estep.rows import PairRows
    from ortho_core.generators.prompt_cache import PromptCache
    from ortho_core.pairs.pair_set import PairSet

    prompts = ["ship", "boat", "1", "airplane", "no class"]
    write_images(tmp_path, *[f"{i}.png" for i in range(5)])
    write_lines(tmp_path / "pairs.jsonl", *[{"prompt": p, "image": f"{i}.png"} for i, p in enumerate(prompts)])
    generator, pairs = make(), PairSet(tmp_path)
    rows = PairRows(Reconstruction(generator, AssignConfig()), PromptCache(generator), pairs, store_latents=True)
    failures = []
    (found,) = rows.batches(pairs.shards(8)[0], failures, None)
    assert [(f.row, f.reason) for f in failures] == [(1, "unknown-class"), (4, "unknown-class")]
    assert "row 1: prompt 'boat' is no class" in failures[0].message
    assert [pair.row for pair in found.pairs] == [0, 2, 3]
    assert found.inputs["condition.classes"].argmax(1).tolist() == [1, 2, 0]
    assert len(found.inputs["target"]) == 8  # filled up, as every batch is
    shades = [float(t.mean()) for t in found.kept]
    assert shades == pytest.approx([i / 255 * 2 - 1 for i in (0, 2, 3)], abs=1e-6)
