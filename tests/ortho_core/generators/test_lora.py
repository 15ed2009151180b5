"""Adapters against what they stand for: the base's own output, plain diffusers' reading of the folder, autograd."""

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ortho_core.errors import UserError
from ortho_core.generators.diffusers_pipelines import DiffusersGenerator
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora import (
    add_lora,
    attach_lora,
    has_lora,
    keep_as_teacher,
    lora_parameters,
    teacher_adapter,
)
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.lora_files import KOHYA_WEIGHTS, LORA_WEIGHTS
from ortho_core.generators.model_folder import ModelFolder

PROMPTS = ["a green handwritten seven on a black background", "an orange handwritten two on a white background"]
SEEDS = [1, 2]
#: Linear and convolution layers, names of which diffusers converts some and not others; α ≠ r.
LORA = Lora(4, 10.0, ("to_q", "to_out.0", "proj_in", "conv_shortcut"))


def latents(generator, grad=False):
    with torch.set_grad_enabled(grad):
        return generator.denoise(generator.base_noise(SEEDS), generator.encode_prompts(PROMPTS))


def image(generator):
    with torch.no_grad():
        return generator.decode(latents(generator)).clamp(0, 1)


def diffusers_image(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    noise = DiffusersGenerator(pipeline).base_noise(SEEDS)
    return pipeline(PROMPTS, latents=noise, num_inference_steps=1, guidance_scale=0.0, output_type="pt").images


def train_a_little(generator, steps=3):
    optimizer = torch.optim.AdamW(lora_parameters(generator.trainable), lr=1e-2)
    for _ in range(steps):
        latents(generator, grad=True).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def adapter_of(generator):
    return [p.detach().clone() for p in lora_parameters(generator.trainable)]


@pytest.fixture
def fresh(tiny_turbo):
    """A generator of the test's own, with an adapter that does nothing yet."""
    loaded = load_generator(ModelFolder.open(tiny_turbo))
    add_lora(loaded.trainable, LORA, seed=3)
    return loaded


@pytest.fixture(scope="module")
def trained(tiny_turbo, tmp_path_factory):
    """A LoRA folder, and the latents and images of the generator that wrote it; neither is to be changed."""
    loaded = load_generator(ModelFolder.open(tiny_turbo))
    add_lora(loaded.trainable, LORA, seed=3)
    train_a_little(loaded)
    folder = tmp_path_factory.mktemp("lora") / "trained"
    loaded.save(folder, card="# A card\n")
    return folder, latents(loaded), image(loaded)


@pytest.fixture
def editable(trained, tiny_turbo, tmp_path):
    """A copy of the LoRA folder on a copy of its base, and a function that changes `lora.json`."""
    folder, base = tmp_path / "lora", tmp_path / "base"
    shutil.copytree(trained[0], folder)
    shutil.copytree(tiny_turbo, base)

    def edit(**changes):
        content = json.loads((folder / "lora.json").read_text()) | changes
        (folder / "lora.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    edit(base_model=str(base))
    return folder, base, edit


def test_a_new_adapter_changes_nothing_and_alone_is_trainable(fresh, generator):
    assert torch.equal(latents(fresh), latents(generator))
    own = lora_parameters(fresh.trainable)
    assert own
    assert {id(p) for p in own} == {id(p) for p in fresh.trainable.parameters() if p.requires_grad}
    assert all(p.dtype == torch.float32 for p in own)
    assert has_lora(fresh.trainable)
    assert not has_lora(generator.trainable)
    assert not any(module.training for module in fresh.trainable.modules())


def test_the_start_depends_on_the_seed_alone(tiny_turbo):
    starts = []
    for seed, state in ((3, 0), (3, 1), (4, 0)):
        loaded = load_generator(ModelFolder.open(tiny_turbo))
        torch.manual_seed(state)
        before = torch.get_rng_state()
        add_lora(loaded.trainable, LORA, seed)
        keep_as_teacher(loaded.trainable)
        assert torch.equal(torch.get_rng_state(), before)
        starts.append(adapter_of(loaded))
    first, again, other = starts
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("to_x", r"target 'to_x' matches none of .* layers; their names end in conv, conv1, .*, to_out\.0, to_q, to_v"),
        ("attn1", r"target 'attn1' matches down_blocks\..*\.attn1, which is none of the network's linear"),
    ],
)
def test_a_target_that_is_no_layer_is_refused_with_those_that_are(target, message, tiny_turbo):
    with pytest.raises(UserError, match=message):
        add_lora(load_generator(ModelFolder.open(tiny_turbo)).trainable, Lora(4, 4.0, ("to_q", target)), 0)


def test_plain_diffusers_reads_the_lora_folder(trained, tiny_turbo, generator):
    folder, _, expected = trained
    assert (expected - image(generator)).abs().max() > 0.05
    pipeline = DiffusionPipeline.from_pretrained(tiny_turbo)
    pipeline.load_lora_weights(folder)
    torch.testing.assert_close(diffusers_image(pipeline), expected, rtol=0, atol=1e-5)
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "lora.json", KOHYA_WEIGHTS, LORA_WEIGHTS]
    assert (folder / "README.md").read_text() == "# A card\n"


def test_a_lora_folder_loads_merged_wherever_a_model_folder_does(trained, generator, tiny_turbo):
    folder, _, expected = trained
    merged = load_generator(ModelFolder.open(folder))
    torch.testing.assert_close(image(merged), expected, rtol=0, atol=1e-5)
    assert not has_lora(merged.trainable)
    assert list(merged.trainable.state_dict()) == list(generator.trainable.state_dict())
    assert not any(p.requires_grad for p in merged.trainable.parameters())
    opened = ModelFolder.open(folder)
    assert (opened.kind, opened.latent_shape) == ("StableDiffusionXLPipeline", generator.latent_shape)
    assert (opened.path, opened.base.path) == (folder, tiny_turbo)
    assert opened.base.base is opened.base


def test_an_adapter_saved_merged_leaves_an_ordinary_folder(trained, tmp_path):
    folder, _, expected = trained
    load_generator(ModelFolder.open(folder)).save(tmp_path / "merged", card="# Merged\n")
    torch.testing.assert_close(
        diffusers_image(DiffusionPipeline.from_pretrained(tmp_path / "merged")), expected, rtol=0, atol=1e-5
    )
    assert (tmp_path / "merged" / "README.md").read_text() == "# Merged\n"
    assert not (tmp_path / "merged" / "lora.json").exists()
    # Rounded once, either way.
    pair = [
        load_generator(ModelFolder.open(one), dtype="bfloat16").trainable.state_dict()
        for one in (folder, tmp_path / "merged")
    ]
    assert all(torch.equal(pair[0][name], pair[1][name]) for name in pair[1])
    assert pair[0]["conv_in.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_kept_apart_goes_on_where_it_was(dtype, trained, tmp_path):
    folder, expected, _ = trained
    kept = load_generator(ModelFolder.open(folder), dtype=dtype, keep_adapter=True)
    torch.testing.assert_close(latents(kept), expected, rtol=0, atol=1e-6 if dtype == "float32" else 0.1)
    own = lora_parameters(kept.trainable)
    assert {p.dtype for p in own} == {torch.float32}
    assert {id(p) for p in own} == {id(p) for p in kept.trainable.parameters() if p.requires_grad}
    assert kept.pipeline.unet.conv_in.weight.dtype == getattr(torch, dtype)
    before = adapter_of(kept)
    kept.save(tmp_path / "again")
    assert (tmp_path / "again" / LORA_WEIGHTS).read_bytes() == (folder / LORA_WEIGHTS).read_bytes()
    assert ModelFolder.open(tmp_path / "again").fingerprint == ModelFolder.open(folder).fingerprint
    train_a_little(kept, steps=1)
    assert all(not torch.equal(a, b) for a, b in zip(adapter_of(kept), before, strict=True))


def state_of(network):
    layers = [m for m in network.modules() if hasattr(m, "lora_A")]
    return (
        [p.requires_grad for p in network.parameters()],
        [m.training for m in network.modules()],
        [(layer.active_adapters, layer.disable_adapters) for layer in layers],
    )


def test_without_a_copy_the_teacher_is_the_base(fresh, generator):
    train_a_little(fresh)
    fresh.trainable.down_blocks.train()
    before, after = state_of(fresh.trainable), latents(fresh)
    with teacher_adapter(fresh.trainable):
        assert torch.equal(latents(fresh), latents(generator))
        assert not any(m.training for m in fresh.trainable.modules())
    assert state_of(fresh.trainable) == before
    assert torch.equal(latents(fresh), after)


def test_a_kept_copy_is_the_teacher(fresh, tmp_path):
    train_a_little(fresh)
    start, trainable = latents(fresh), lora_parameters(fresh.trainable)
    keep_as_teacher(fresh.trainable)
    assert torch.equal(latents(fresh), start)
    with teacher_adapter(fresh.trainable):
        taught = latents(fresh)
    # Not to the last bit: PyTorch's matmul folds dimensions only where a factor has a gradient.
    torch.testing.assert_close(taught, start, rtol=0, atol=1e-5)
    assert [id(p) for p in lora_parameters(fresh.trainable)] == [id(p) for p in trainable]
    assert {id(p) for p in trainable} == {id(p) for p in fresh.trainable.parameters() if p.requires_grad}
    train_a_little(fresh)
    before, moved = state_of(fresh.trainable), latents(fresh)
    assert (moved - start).abs().max() > 0.01

    def fail_under_the_teacher():
        with teacher_adapter(fresh.trainable):
            assert torch.equal(latents(fresh), taught)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_under_the_teacher()
    assert state_of(fresh.trainable) == before
    assert torch.equal(latents(fresh), moved)
    fresh.save(tmp_path / "saved")
    assert not any("teacher" in name for name in load_file(tmp_path / "saved" / LORA_WEIGHTS))
    torch.testing.assert_close(latents(load_generator(ModelFolder.open(tmp_path / "saved"))), moved, rtol=0, atol=1e-5)
    keep_as_teacher(fresh.trainable)
    with teacher_adapter(fresh.trainable):
        torch.testing.assert_close(latents(fresh), moved, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("teacher_first", [False, True])
def test_the_teacher_leaves_no_trace_in_the_gradient(teacher_first, autocast, kept, fresh):
    network = fresh.trainable
    network.enable_gradient_checkpointing()
    train_a_little(fresh, steps=1)
    if kept:
        keep_as_teacher(network)
    network.train()

    def gradient(ask_teacher):
        def ask():
            if ask_teacher:
                with torch.no_grad(), teacher_adapter(network):
                    latents(fresh)

        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if teacher_first:
                ask()
            loss = latents(fresh, grad=True).square().mean()
            if not teacher_first:
                ask()
        return torch.autograd.grad(loss, lora_parameters(network))

    assert all(torch.equal(a, b) for a, b in zip(gradient(True), gradient(False), strict=True))


def test_a_network_without_adapter_has_no_teacher(tiny_turbo):
    network = load_generator(ModelFolder.open(tiny_turbo)).trainable
    with pytest.raises(ValueError, match="has no adapter"):
        keep_as_teacher(network)
    with pytest.raises(ValueError, match="has no adapter"), teacher_adapter(network):
        pass


def test_the_fingerprint_is_that_of_adapter_and_base_wherever_they_lie(trained, editable, tmp_path):
    folder, base, edit = editable
    assert (
        ModelFolder.open(folder).fingerprint
        == ModelFolder.open(trained[0]).fingerprint
        != ModelFolder.open(base).fingerprint
    )
    base.rename(tmp_path / "moved")
    edit(base_model=str(tmp_path / "moved"))
    (folder / "README.md").write_text("other words")
    assert ModelFolder.open(folder).fingerprint == ModelFolder.open(trained[0]).fingerprint
    weights = bytearray((folder / LORA_WEIGHTS).read_bytes())
    weights[-1] ^= 1
    (folder / LORA_WEIGHTS).write_bytes(weights)
    assert ModelFolder.open(folder).fingerprint != ModelFolder.open(trained[0]).fingerprint


def test_another_base_than_the_recorded_one_is_refused(editable):
    folder, base, _ = editable
    config = base / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "norm_eps": 1e-6}))
    for use in (load_generator, lambda opened: opened.fingerprint):
        with pytest.raises(
            UserError, match=r"lora\.json: the base model .* has fingerprint .* trained on .* set base_"
        ):
            use(ModelFolder.open(folder))


def test_what_is_wrong_with_a_lora_folder_is_told_in_one_line(editable, tmp_path):
    folder, base, edit = editable

    def refused(message):
        with pytest.raises(UserError, match=message) as caught:
            ModelFolder.open(folder)
        assert "\n" not in str(caught.value)

    edit(base_model=str(tmp_path / "gone"))
    refused(r"lora\.json: the base model .*gone does not exist; set base_model in this file to its present folder")
    edit(base_model="models/tiny-turbo")
    refused(r"lora\.json: base_model is models/tiny-turbo; an absolute path is accepted")
    edit(base_model=7)
    refused("must be non-empty strings, found")
    edit(base_model=str(folder))
    refused("is itself a LoRA folder; accepted: a diffusers pipeline's folder")
    edit(base_model=str(tmp_path))
    refused(r"lora\.json: base_model: .* is not a model folder")
    edit(base_model=str(base), extra="x")
    refused(
        r"has the entries \['base_fingerprint', 'base_model', 'extra'\]; accepted: an object with base_model and base_finger"
    )
    (folder / "lora.json").write_text("[1]")
    refused(r"holds \[1\]; accepted: a JSON object")
    (folder / "lora.json").write_text("{")
    refused(r"lora\.json is not JSON")


def test_a_folder_must_be_of_one_kind(editable, tiny_turbo):
    folder, _, _ = editable
    shutil.copy(tiny_turbo / "model_index.json", folder)
    with pytest.raises(UserError, match=r"contains both model_index\.json and lora\.json"):
        ModelFolder.open(folder)
    (folder / "model_index.json").unlink()
    (folder / LORA_WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"lora\.json without pytorch_lora_weights\.safetensors"):
        ModelFolder.open(folder)
    (folder / "lora.json").unlink()
    with pytest.raises(
        UserError, match=r"it has no model_index\.json and no lora\.json.*\(lora_kohya.*a LoRA's path to --lora"
    ):
        ModelFolder.open(folder)


def test_weights_of_another_kind_are_refused(editable, fresh, tiny_turbo, trained):
    folder, _, _ = editable
    file = folder / LORA_WEIGHTS
    weights = load_file(file)
    with safe_open(file, "pt") as stored:
        header = stored.metadata()

    def refused(message, tensors, **described):
        changed = json.loads(header["lora_adapter_metadata"]) | {f"unet.{k}": v for k, v in described.items()}
        save_file(tensors, file, {"lora_adapter_metadata": json.dumps(changed)})
        with pytest.raises(UserError, match=message):
            attach_lora(load_generator(ModelFolder.open(tiny_turbo)).trainable, folder)

    refused("does not fit its base model", weights, r=8)
    refused("does not fit its base model", dict(list(weights.items())[1:]))
    refused("does not fit its base model", weights | {"unet.other.lora_A.weight": torch.zeros(4, 4)})
    refused("an adapter with use_rslora; accepted: plain LoRA", weights, use_rslora=True)
    refused("does not describe its adapter", weights, r=None)
    save_file(weights, file)
    with pytest.raises(UserError, match="does not describe its adapter"):
        load_generator(ModelFolder.open(folder))
    file.write_bytes(b"no safetensors")
    with pytest.raises(UserError, match="does not load as safetensors"):
        load_generator(ModelFolder.open(folder))


def test_nothing_that_a_folder_is_made_of_is_replaced_by_it(editable, tiny_turbo, tmp_path):
    folder, base, _ = editable
    kept = load_generator(ModelFolder.open(folder), keep_adapter=True)
    for place in (base, tmp_path):
        with pytest.raises(UserError, match="would replace its base model"):
            kept.save(place)
    kept.folder = None
    with pytest.raises(ValueError, match="has no `folder`"):
        kept.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
