"""LoRAs added to a model, in every format, against W + w·α/r·B A computed here from the names that each format has."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from ortho_core.errors import UserError
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora_config import AddedLora
from ortho_core.generators.model_folder import ModelFolder
from tests.ortho_core.generators.original_names import single_file, unet_name

RANK, ALPHA = 3, 1.5
#: Layers of tiny-turbo: linear and convolution, of which kohya's scripts know the second by another repository's names.
UNET = (
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_out.0",
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "mid_block.attentions.0.proj_in",
    "down_blocks.0.resnets.0.conv1",
    "up_blocks.1.resnets.1.conv_shortcut",
)
TEXT = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1")
TENSOR = {"text_encoder": "text_model.", "text_encoder_2": "text_model."}


def factors(network, names, seed):
    """A and B of each layer, in half precision as they are published."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for name in names:
        weight = network.get_submodule(name).weight
        out, enter, *kernel = weight.shape
        A = torch.randn(RANK, enter, *kernel, generator=draw) / 8
        B = torch.randn(out, RANK, *(1 for _ in kernel), generator=draw) / 8
        found[name] = (A.half(), B.half())
    return found


def product(A, B):
    A, B = A.double(), B.double()
    return B @ A if A.dim() == 2 else (B.flatten(1) @ A.flatten(1)).view(B.shape[0], *A.shape[1:])


def diffusers_file(parts, file):
    state = {
        f"{part}.{TENSOR.get(part, '')}{name}.lora_{which}.weight": value
        for part, layers in parts.items()
        for name, pair in layers.items()
        for which, value in zip("AB", pair, strict=True)
    }
    save_file(state, file)
    return file


def older_diffusers_file(parts, file):
    """Before PEFT: processors of attention alone, and of text encoders `lora_linear_layer`."""
    state = {}
    for part, layers in parts.items():
        for name, pair in layers.items():
            for which, value in zip(("down", "up"), pair, strict=True):
                if part == "unet":
                    place, _, projection = name.partition(".to_")
                    state[f"unet.{place}.processor.to_{projection.removesuffix('.0')}_lora.{which}.weight"] = value
                else:
                    state[f"{part}.text_model.{name}.lora_linear_layer.{which}.weight"] = value
    save_file(state, file)
    return file


def kohya_file(parts, file, *, original=True, alpha=ALPHA):
    state = {}
    for part, layers in parts.items():
        for name, (A, B) in layers.items():
            if part != "unet":
                key = f"lora_te{2 if part.endswith('2') else 1}_text_model_{name.replace('.', '_')}"
            else:
                key = f"lora_unet_{(unet_name(name, 1, {0}) if original else name).replace('.', '_')}"
            state |= {f"{key}.lora_down.weight": A, f"{key}.lora_up.weight": B}
            if alpha is not None:
                state[f"{key}.alpha"] = torch.tensor(alpha).half()
    save_file(state, file, {"ss_network_module": "networks.lora", "ss_network_dim": str(RANK)})
    return file


@pytest.fixture
def model(tiny_turbo):
    return ModelFolder.open(tiny_turbo)


@pytest.fixture
def parts(generator):
    pipeline = generator.pipeline
    return {
        "unet": factors(pipeline.unet, UNET, 1),
        "text_encoder": factors(pipeline.text_encoder, TEXT, 2),
        "text_encoder_2": factors(pipeline.text_encoder_2.text_model, TEXT, 3),
    }


def weights(generator):
    pipeline = generator.pipeline
    networks = {
        "unet": pipeline.unet,
        "text_encoder": pipeline.text_encoder,
        "text_encoder_2": pipeline.text_encoder_2.text_model,
    }
    return {
        f"{part}.{name}": p.detach() for part, network in networks.items() for name, p in network.named_parameters()
    }


def check(found, base, parts, scale):
    """Every weight is the base's plus `scale` times its product, and the others are the base's."""
    base, found = weights(base), weights(found)
    assert found.keys() == base.keys()
    for part, layers in parts.items():
        for name, pair in layers.items():
            expected = base.pop(f"{part}.{name}.weight").double() + scale * product(*pair)
            torch.testing.assert_close(found[f"{part}.{name}.weight"].double(), expected, rtol=1e-6, atol=1e-6)
    assert all(torch.equal(found[name], value) for name, value in base.items())


@pytest.mark.parametrize("original", [True, False], ids=["original names", "diffusers' names"])
def test_kohya_files_count_by_their_alpha(original, model, parts, generator, tmp_path):
    if not original:  # in these the scripts write what diffusers' UNet calls attention
        parts["unet"] = {name: pair for name, pair in parts["unet"].items() if "attentions" in name}
    added = model.with_loras(
        [AddedLora(file=kohya_file(parts, tmp_path / "a.safetensors", original=original), weight=0.8)]
    )
    check(load_generator(added), generator, parts, 0.8 * ALPHA / RANK)


def test_kohya_files_with_alphas_of_their_own_for_each_layer(model, parts, generator, tmp_path):
    file = kohya_file(parts, tmp_path / "a.safetensors")
    state = {name: value.clone() for name, value in load_file(file).items()}
    alphas = {}
    for number, name in enumerate(key for key in sorted(state) if key.endswith(".alpha")):
        state[name] = alphas[name] = torch.tensor(float(number + 1))
    save_file(state, file)
    found = weights(load_generator(model.with_loras([AddedLora(file=file)])))
    base = weights(generator)
    keys = {f"lora_unet_{unet_name(name, 1, {0}).replace('.', '_')}.alpha": ("unet", name) for name in UNET}
    for part, short in (("text_encoder", 1), ("text_encoder_2", 2)):
        keys |= {f"lora_te{short}_text_model_{name.replace('.', '_')}.alpha": (part, name) for name in TEXT}
    for key, (part, name) in keys.items():
        moved = (found[f"{part}.{name}.weight"] - base[f"{part}.{name}.weight"]).double()
        torch.testing.assert_close(
            moved, alphas[key].double() / RANK * product(*parts[part][name]), rtol=1e-4, atol=1e-6
        )


def test_diffusers_files_of_today_and_of_before(model, parts, generator, tmp_path):
    added = model.with_loras([AddedLora(file=diffusers_file(parts, tmp_path / "a.safetensors"))])
    check(load_generator(added), generator, parts, 1.0)
    older = {
        part: {n: p for n, p in layers.items() if "self_attn" in n or "attn" in n} for part, layers in parts.items()
    }
    added = model.with_loras([AddedLora(file=older_diffusers_file(older, tmp_path / "b.safetensors"))])
    check(load_generator(added), generator, older, 1.0)


def test_a_folder_of_diffusers_says_its_alpha(model, parts, generator, tmp_path):
    from diffusers import StableDiffusionXLPipeline
    from peft import LoraConfig, get_peft_model_state_dict

    unet = type(generator.pipeline.unet).from_pretrained(model.path / "unet")
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=12, target_modules=["to_q", "to_v"], init_lora_weights=False))
    StableDiffusionXLPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
    )
    found = load_generator(model.with_loras([AddedLora(file=tmp_path)])).pipeline.unet
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    layer = unet.get_submodule(name)
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = layer.base_layer.weight + 4 * B @ A
    torch.testing.assert_close(found.get_submodule(name).weight, expected.detach(), rtol=0, atol=1e-6)


def test_several_are_summed_in_float32_and_rounded_once(model, parts, generator, tmp_path):
    one = kohya_file(parts, tmp_path / "one.safetensors")
    two = diffusers_file({"unet": factors(generator.pipeline.unet, UNET, 9)}, tmp_path / "two.safetensors")
    both = [AddedLora(file=one, weight=0.5), AddedLora(file=two, weight=-2.0)]
    added = model.with_loras(both)
    exact, half = weights(load_generator(added)), weights(load_generator(added, dtype="bfloat16"))
    assert all(torch.equal(half[name], value.bfloat16()) for name, value in exact.items())
    turned = model.with_loras(both[::-1])
    assert turned.fingerprint == added.fingerprint
    assert all(torch.equal(value, exact[name]) for name, value in weights(load_generator(turned)).items())


def test_what_is_added_is_part_of_the_model(model, parts, tmp_path):
    one = kohya_file({"unet": parts["unet"]}, tmp_path / "one.safetensors")
    two = kohya_file(parts, tmp_path / "two.safetensors")
    given = [
        [],
        [AddedLora(file=one)],
        [AddedLora(file=one, weight=0.5)],
        [AddedLora(file=two)],
        [AddedLora(file=one), AddedLora(file=two)],
    ]
    models = [model.with_loras(each) for each in given]
    assert len({each.fingerprint for each in models}) == len(given)
    texts = [each.text_fingerprint for each in models]
    assert texts[0] == texts[1] == texts[2] == model.text_fingerprint
    assert len({texts[2], texts[3], texts[4]}) == 3


def test_it_is_added_to_a_checkpoint_as_to_a_folder(model, parts, tiny_turbo, tmp_path):
    file = kohya_file(parts, tmp_path / "a.safetensors")
    checkpoint = ModelFolder.open(single_file(tiny_turbo, tmp_path / "tiny.safetensors"))
    added = load_generator(checkpoint.with_loras([AddedLora(file=file)]), dtype="bfloat16")
    plain = load_generator(model.with_loras([AddedLora(file=file)]), dtype="bfloat16")
    assert all(torch.equal(value, weights(plain)[name]) for name, value in weights(added).items())


@pytest.mark.parametrize(
    ("spelled", "expected"),
    [
        ("a.safetensors", [("a.safetensors", 1.0)]),
        ("a.safetensors:0.8,b:-1", [("a.safetensors", 0.8), ("b", -1.0)]),
        ("x/a:high", [("x/a:high", 1.0)]),
        ("a:nan", [("a:nan", 1.0)]),
        (["a:2"], [("a", 2.0)]),
    ],
)
def test_files_and_weights_are_spelled_in_one_option(spelled, expected):
    from pydantic import TypeAdapter

    from ortho_core.generators.lora_config import LoraList

    assert [(str(each.file), each.weight) for each in TypeAdapter(LoraList).validate_python(spelled)] == expected


def test_what_does_not_fit_is_refused_in_one_line(model, parts, stable_diffusion, tmp_path):
    file = tmp_path / "a.safetensors"

    def refused(says, place=file, load=False, on=model):
        add = on.with_loras
        with pytest.raises(UserError, match=says) as caught:
            load_generator(add([AddedLora(file=place)])) if load else add([AddedLora(file=place)])
        assert "\n" not in str(caught.value)

    refused("a.safetensors does not exist")
    refused("contains no .safetensors; give the LoRA's file", tmp_path)
    (tmp_path / "a.pt").write_bytes(b"x")
    refused(r"is a \.pt file; accepted: \.safetensors", tmp_path / "a.pt")
    for state, says in (
        ({"unet.x.lora_A.weight": 1, "unet.x.lora_magnitude_vector": 1}, "contains DoRA; accepted: plain LoRA"),
        ({"lora_unet_x.hada_w1_a": 1}, "contains LoHa"),
        ({"model.diffusion_model.out.2.bias": 1}, "contains no LoRA: it has model.diffusion_model.out.2.bias"),
        ({"unet.x.lora_A.weight": 1, "unet.x.bias": 1}, "contains unet.x.bias, which is not part of a plain LoRA"),
    ):
        save_file({name: torch.zeros(1, 1) for name in state}, file)
        refused(says)
    kohya_file(parts, file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    refused("is broken")
    file.write_bytes(whole)
    refused("does not fit this model", load=True, on=ModelFolder.open(stable_diffusion))
    # A layer that the model does not have, and one of another shape.
    state = {name: value.clone() for name, value in load_file(diffusers_file({"unet": parts["unet"]}, file)).items()}
    save_file({k.replace("proj_in", "proj_on"): v for k, v in state.items()}, file)
    refused("does not fit this model, which has 5 of the 6 layers", load=True)
    wide = torch.zeros(RANK, 7)
    save_file({k: wide if "proj_in.lora_A" in k else v for k, v in state.items()}, file)
    refused("does not fit this model", load=True)
