"""Every layout that folders of the hub have: which files are loaded for which precision, what is said, and which model it is."""

import shutil

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from ortho_core.errors import UserError
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora_config import AddedLora
from ortho_core.generators.model_folder import ModelFolder

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
STEMS = {
    **dict.fromkeys(("unet", "vae"), "diffusion_pytorch_model"),
    **dict.fromkeys(("text_encoder", "text_encoder_2"), "model"),
}
#: What is subtracted from each weight of the fp16 variant, for it to be told from the full one.
MARK = 0.25


def full(folder, part):
    return folder / part / f"{STEMS[part]}.safetensors"


def halve(folder, part, *, alone=False, shards=False):
    """Add the fp16 variant of a part, marked."""
    weights = {name: (value - MARK).half() for name, value in load_file(full(folder, part)).items()}
    if shards:
        from huggingface_hub import save_torch_state_dict

        pattern = f"{STEMS[part]}.fp16{{suffix}}.safetensors"
        save_torch_state_dict(weights, folder / part, filename_pattern=pattern, max_shard_size="1MB")
        index = folder / part / f"{STEMS[part]}.fp16.safetensors.index.json"
        index.rename(folder / part / f"{STEMS[part]}.safetensors.index.fp16.json")
    else:
        save_file(weights, folder / part / f"{STEMS[part]}.fp16.safetensors", {"format": "pt"})
    if alone:
        full(folder, part).unlink()


@pytest.fixture
def folder(tiny_turbo, tmp_path):
    return shutil.copytree(tiny_turbo, tmp_path / "turbo")


def is_marked(parameter, plain):
    moved = (plain.float() - parameter.float()).mean().item()
    assert moved == pytest.approx(0, abs=0.02) or moved == pytest.approx(MARK, abs=0.02)
    return moved > MARK / 2


@pytest.mark.parametrize("layout", ["alone", "beside", "shards", "pointer", "index", "some"])
def test_the_files_that_fit_the_precision_are_taken(layout, folder, generator):
    parts = ("unet", "text_encoder_2") if layout == "some" else tuple(STEMS)
    for part in parts:
        halve(folder, part, alone=layout in ("alone", "index"), shards=layout == "shards" and part == "unet")
        if layout == "pointer":
            full(folder, part).write_bytes(POINTER)
        elif layout == "index":  # the small files of a repository, and one variant of the large ones
            (folder / part / f"{STEMS[part]}.safetensors.index.json").write_text(
                f'{{"weight_map": {{"a": "{STEMS[part]}-00001-of-00002.safetensors"}}}}'
            )
    (folder / "sd_xl_turbo_1.0_fp16.safetensors").write_bytes(b"a checkpoint beside it")
    opened = ModelFolder.open(folder)
    full_there = layout in ("beside", "shards", "some")
    for dtype in ("float32", "float16", "bfloat16"):
        pipeline = load_generator(opened, dtype=dtype).pipeline
        for part in STEMS:
            network = getattr(pipeline, part)
            name, parameter = next(iter(network.named_parameters()))
            plain = dict(getattr(generator.pipeline, part).named_parameters())[name]
            computes = "float32" if part == "vae" else dtype
            assert parameter.dtype == getattr(torch, computes)
            assert is_marked(parameter, plain) == (part in parts and not (full_there and computes == "float32")), part


def test_both_are_one_model_which_the_full_files_identify(folder, tiny_turbo):
    whole = ModelFolder.open(tiny_turbo).fingerprint
    for part in STEMS:
        halve(folder, part)
    assert ModelFolder.open(folder).fingerprint == whole
    for part in STEMS:
        full(folder, part).unlink()
    alone = ModelFolder.open(folder).fingerprint
    assert alone != whole
    (folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"not loaded")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"not loaded")
    assert ModelFolder.open(folder).fingerprint == alone


def test_which_files_are_taken_is_said_where_there_is_a_choice(folder):
    assert ModelFolder.open(folder).files_used("float16") == ""
    halve(folder, "unet")
    opened = ModelFolder.open(folder)
    assert opened.files_used("float16") == (
        f"model {folder}: full files of text_encoder, text_encoder_2, vae; fp16 files of unet (--dtype float16)"
    )
    assert "full files of text_encoder, text_encoder_2, unet, vae" in opened.files_used("float32")
    assert (
        "on a GPU full files of text_encoder, text_encoder_2, vae; fp16 files of unet, on a CPU full"
        in opened.files_used("auto")
    )


def test_every_variant_that_may_be_loaded_is_checked(folder):
    halve(folder, "unet")
    half = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    whole = half.read_bytes()
    for content, says in (
        (whole[:-10], r"fp16\.safetensors is broken .*: fetch"),
        (b"", r"fp16\.safetensors is empty"),
    ):
        half.write_bytes(content)
        with pytest.raises(UserError, match=says) as caught:
            ModelFolder.open(folder)
        assert "\n" not in str(caught.value)
    half.write_bytes(POINTER)
    assert ModelFolder.open(folder).weights["unet"].keys() == {""}
    full(folder, "unet").write_bytes(POINTER)
    with pytest.raises(UserError, match="git-lfs"):
        ModelFolder.open(folder)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_lora_is_rounded_once_whatever_the_files(dtype, folder, generator, tmp_path):
    """As when the pipeline is built in float32, the LoRA is fused by diffusers, and the result is rounded."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder)
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    draw = torch.Generator().manual_seed(1)
    factors = {"lora_A": torch.randn(4, 96, generator=draw), "lora_B": torch.randn(96, 4, generator=draw)}
    save_file({f"unet.{name}.{key}.weight": value for key, value in factors.items()}, tmp_path / "a.safetensors")
    pipeline.load_lora_weights(tmp_path, weight_name="a.safetensors")
    pipeline.fuse_lora(lora_scale=0.5)
    pipeline.unload_lora_weights()
    expected = pipeline.unet.get_submodule(name).weight.to(getattr(torch, dtype))
    UNet = type(pipeline.unet)
    UNet.from_pretrained(folder / "unet").save_pretrained(folder / "unet", max_shard_size="1MB")
    full(folder, "unet").unlink(missing_ok=True)
    added = ModelFolder.open(folder).with_loras([AddedLora(file=tmp_path / "a.safetensors", weight=0.5)])
    assert torch.equal(load_generator(added, dtype=dtype).pipeline.unet.get_submodule(name).weight, expected)
