"""Which files a part is loaded from, against what diffusers and transformers open, and what is said of those that are broken."""

import json
import shutil
import sys

import pytest
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from ortho_core.errors import UserError
from ortho_core.generators.part_files import check_file, json_hash, read_json, tokenizer_files, weights_of

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 10270077736\n"


@pytest.fixture(scope="module")
def opened():
    """Names of the files that were opened since the list was cleared."""
    names = []
    watching = [True]
    sys.addaudithook(lambda event, args: names.append(str(args[0])) if watching and event == "open" else None)
    yield names
    watching.clear()


def copied(source, folder):
    shutil.copytree(source, folder)
    return folder


def test_the_weights_are_those_that_the_libraries_load(tiny_turbo, tmp_path):
    unet, text = copied(tiny_turbo / "unet", tmp_path / "unet"), copied(tiny_turbo / "text_encoder", tmp_path / "text")
    for folder, library, name in (
        (unet, "diffusers", "diffusion_pytorch_model.safetensors"),
        (text, "transformers", "model.safetensors"),
    ):
        for other in (
            name.replace(".s", ".non_ema.s"),
            name.replace("safetensors", "bin"),
            "model.onnx",
            "model.msgpack",
        ):
            (folder / other).write_bytes(b"another variant or format")
        assert weights_of(folder, library) == {"": (folder / name,)}
    # Whoever reads them, an index wins with diffusers, and one file with transformers.
    UNet2DConditionModel.from_pretrained(tiny_turbo / "unet").save_pretrained(unet, max_shard_size="2MB")
    CLIPTextModel.from_pretrained(tiny_turbo / "text_encoder").save_pretrained(text, max_shard_size="40KB")
    shutil.copy(tiny_turbo / "unet" / "diffusion_pytorch_model.safetensors", unet)
    shutil.copy(tiny_turbo / "text_encoder" / "model.safetensors", text)
    shards = weights_of(unet, "diffusers")[""]
    assert len(shards) > 2
    assert {k for shard in shards for k in load_file(shard)} == set(
        load_file(tiny_turbo / "unet" / "diffusion_pytorch_model.safetensors")
    )
    assert weights_of(text, "transformers")[""] == (text / "model.safetensors",)
    # The libraries themselves: each goes without what is not in the list, and not without what is.
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    UNet2DConditionModel.from_pretrained(unet, use_safetensors=True)
    for shard in text.glob("model-*.safetensors"):
        shard.write_bytes(b"not read")
    CLIPTextModel.from_pretrained(text, use_safetensors=True)
    (text / "model.safetensors").unlink()
    assert len(weights_of(text, "transformers")[""]) > 1
    shards[1].unlink()
    with pytest.raises(UserError, match=rf"{shards[1].name} is missing: fetch"):
        weights_of(unet, "diffusers")
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": {"a": "../a.safetensors"}}')
    with pytest.raises(UserError, match=r"index\.json has no weight_map of file names"):
        weights_of(unet, "diffusers")


def test_weights_of_another_kind_are_named_with_what_is_needed(tmp_path):
    (tmp_path / "diffusion_pytorch_model.non_ema.safetensors").touch()
    (tmp_path / "diffusion_pytorch_model.bin").touch()
    with pytest.raises(
        UserError,
        match=r"diffusion_pytorch_model\.safetensors is missing; the folder has diffusion_pytorch_model\.bin, "
        r"diffusion_pytorch_model\.non_ema\.safetensors, a variant or format that is not loaded: fetch the safetensors",
    ):
        weights_of(tmp_path, "diffusers")


def test_a_tokenizer_is_loaded_from_those_files_and_from_no_others(tiny_turbo, tmp_path):
    folder = copied(tiny_turbo / "tokenizer", tmp_path / "tokenizer")

    def ids():
        return CLIPTokenizer.from_pretrained(folder)("a green handwritten seven").input_ids

    expected, model = ids(), json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text("{}")
    (folder / "merges.txt").write_text("")
    (folder / "special_tokens_map.json").write_text("{}")
    names = [path.name for path in tokenizer_files(folder)]
    assert names == ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    assert ids() == expected
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]) + "\n")
    names = [path.name for path in tokenizer_files(folder)]
    assert names == ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"]
    assert ids() == expected
    (folder / "merges.txt").unlink()
    with pytest.raises(
        UserError, match=r"tokenizer has neither tokenizer\.json nor vocab\.json with merges\.txt: fetch"
    ):
        tokenizer_files(folder)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "is missing: fetch the model folder again"),
        (b"", "is empty: fetch"),
        (b" \n", "is empty: fetch"),
        (POINTER, "is a git-lfs pointer, not the file itself: run `git lfs pull`"),
        (b"\xff\xfe{}", r"is not JSON: not text in UTF-8 \(byte 0\)"),
        (b"{", r"is not JSON: .*; correct it, or fetch"),
        (b'{"a": 1}{"a": 2}', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", r"holds \[1\]; accepted: a JSON object"),
        (b"null", "holds null; accepted: a JSON object"),
        ("a folder", "cannot be read: Is a directory"),
    ],
)
def test_what_is_no_configuration_is_told_in_one_line_with_the_remedy(content, says, tmp_path):
    file = tmp_path / "config.json"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        file.mkdir()
    with pytest.raises(UserError, match=rf"config\.json {says}") as caught:
        read_json(file)
    assert "\n" not in str(caught.value)


def test_weights_are_looked_at_without_reading_them(tmp_path, opened):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x" * 10_000)
    opened.clear()
    assert check_file(file) == file
    assert str(file) not in opened
    for content, says in ((POINTER, "git-lfs"), (b"", "is empty")):
        file.write_bytes(content)
        with pytest.raises(UserError, match=says):
            check_file(file)
    file.unlink()
    with pytest.raises(UserError, match="is missing"):
        check_file(file)


def test_the_hash_of_a_configuration_is_of_what_it_says():
    said = {"in_channels": 4, "sample_size": 64, "names": ["a", "b"]}
    assert json_hash(said) == json_hash(dict(reversed(said.items())))
    assert json_hash(said) == json_hash({**said, "_diffusers_version": "0.1", "_name_or_path": "/home/me/model"})
    others = ({"in_channels": 5}, {"sample_size": None}, {"names": ["b", "a"]}, {"more": 1})
    assert len({json_hash({**said, **other}) for other in ({}, *others)}) == 5
