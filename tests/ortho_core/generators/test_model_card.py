import ast
import re
import shlex
import shutil
from dataclasses import replace

import diffusers
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from ortho_core.generators.class_conditional import ClassGenerator, ClassNetwork
from ortho_core.generators.class_config import ClassConfig
from ortho_core.generators.diffusers_pipelines import DiffusersGenerator
from ortho_core.generators.load import load_generator
from ortho_core.generators.lora import add_lora, lora_parameters
from ortho_core.generators.lora_config import Lora
from ortho_core.generators.model_card import THIS, model_card
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.pipeline_files import RECIPE
from rayjobs.cli import main
from tests.ortho_core.generators.original_names import single_file

PROMPTS = ["a green handwritten seven on a black background", "an orange handwritten two on a white background"]


def card(**options):
    facts = {"trained on": "24 | rows", "started from": "a model (fingerprint 0123)"}
    settings = {"facts": facts, "metrics": {"latent": 0.123456789}, "config": {"lr": 1e-4, "noise": "matched"}}
    return model_card("My run", **{**settings, "base": "some/base: 1", "lora": False, **options})


@pytest.mark.parametrize(("lora", "relation"), [(False, "finetune"), (True, "adapter")])
def test_the_front_matter_is_yaml_and_names_the_base(lora, relation, tiny_turbo):
    _, head, text = card(lora=lora, model=ModelFolder.open(tiny_turbo)).split("---\n", 2)
    content = yaml.safe_load(head)
    assert (content["base_model"], content["base_model_relation"]) == ("some/base: 1", relation)
    assert ("lora" in content["tags"]) == lora
    assert ("load_lora_weights" in text) == lora
    assert text.startswith("\n# My run\n")


def test_facts_metrics_and_configuration_can_be_read():
    text = card()
    assert "| trained on | 24 \\| rows |" in text
    assert "| latent | 0.12346 |" in text
    assert yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1]) == {"lr": 1e-4, "noise": "matched"}
    assert "\n\n\n" not in text


def block(text, language=""):
    return re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)[1]


def made(kind, request, folder):
    """A model in each form that people have, as `--model` takes it."""
    tiny_turbo = request.getfixturevalue("tiny_turbo")
    if kind == "folder":
        return shutil.copytree(tiny_turbo, folder / 'a "turbo"')
    if kind == "another scheduler":  # which starts where the weights were distilled to
        copy = shutil.copytree(tiny_turbo, folder / "lcm")
        diffusers.LCMScheduler(clip_sample=False).save_pretrained(copy / "scheduler")
        index = (copy / "model_index.json").read_text()
        (copy / "model_index.json").write_text(re.sub(r"\w+Scheduler", "LCMScheduler", index))
        (copy / RECIPE).write_text('{"timestep": 799}')
        return copy
    if kind == "fp16 alone":
        copy = shutil.copytree(tiny_turbo, folder / "half")
        file = copy / "unet" / "diffusion_pytorch_model.safetensors"
        half = {name: value.half() for name, value in load_file(file).items()}
        save_file(half, file.with_name("diffusion_pytorch_model.fp16.safetensors"), {"format": "pt"})
        file.unlink()
        return copy
    if kind == "single file in its folder":
        xl = request.getfixturevalue("stable_diffusion_xl")
        copy = shutil.copytree(xl, folder / "xl")
        return shutil.move(single_file(xl, folder / "one.safetensors"), copy / "one.safetensors")
    # Not tiny-turbo: diffusers knows SDXL's two text encoders by their widths, and its have the same.
    return single_file(
        request.getfixturevalue("stable_diffusion" + ("_xl" if kind == "single file" else "")),
        folder / "one.safetensors",
    )


FORMS = (
    *("folder", "another scheduler", "fp16 alone"),
    *("single file", "single file in its folder", "single file of SD 1"),
)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kind", FORMS)
def test_the_code_of_a_card_makes_the_models_images(kind, lora, request, tmp_path, monkeypatch):
    """It is run as it stands, without the hub, and compared with the generator that was saved."""
    base = ModelFolder.open(made(kind, request, tmp_path))
    generator = load_generator(base)
    draw = torch.Generator().manual_seed(1)
    if lora:
        add_lora(generator.trainable, Lora(4, 10.0), seed=3)
    with torch.no_grad():
        for weight in lora_parameters(generator.trainable) if lora else [generator.trainable.conv_out.bias]:
            weight.copy_(torch.randn(weight.shape, generator=draw) / 4)
    generator.save(tmp_path / "mine", card(lora=lora, model=base))
    code = block((tmp_path / "mine" / "README.md").read_text(), "python")
    assert THIS in code
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the code asked the hub"))
    names = {}
    exec(code.replace(THIS, str(tmp_path / "mine")), names)
    assert names["image"].size == generator.image_size[::-1]
    pipeline = names["pipeline"]
    assert float(pipeline.scheduler.timesteps[0]) == generator.step.timestep
    noise = generator.base_noise([1, 2])
    theirs = DiffusersGenerator(pipeline, base.recipe.timestep)
    with torch.no_grad():
        latents, expected = (each.denoise(noise, each.encode_prompts(PROMPTS)) for each in (theirs, generator))
    torch.testing.assert_close(latents, expected, rtol=0, atol=1e-4)


def test_a_checkpoint_whose_configurations_are_built_in_gets_its_scheduler_and_size(tmp_path, monkeypatch, tiny_turbo):
    """The hub's configurations, which diffusers would fetch, are of a model of another size and many steps."""
    turbo = ModelFolder.open(tiny_turbo)
    file = replace(turbo, path=tmp_path / "x.safetensors", checkpoint=True, built_in="SDXL Turbo", image_size=(64, 72))
    code = block(card(lora=True, model=file), "python")
    asked = []

    def from_single_file(path, **options):
        assert (path, options) == (str(file.path), {})
        pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(tiny_turbo)
        pipeline.scheduler = diffusers.DDIMScheduler()
        pipeline.load_lora_weights = asked.append
        return pipeline

    monkeypatch.setattr(diffusers.StableDiffusionXLPipeline, "from_single_file", from_single_file)
    names = {}
    exec(code, names)
    assert names["image"].size == (72, 64)
    assert asked == [THIS]
    made, recipe = names["pipeline"].scheduler, turbo.recipe
    assert type(made).__name__ == recipe.scheduler
    assert {made.config[name] == recipe.config[name] for name in ("prediction_type", "timestep_spacing")} == {True}


def test_the_command_of_a_class_conditional_models_card_runs(tmp_path):
    config = ClassConfig(classes=('"one" $two', "three"), noise_shape=(8, 1, 1), image_shape=(1, 8, 8))
    text = card(classes=config.classes, base="")
    ClassGenerator(config, ClassNetwork(config)).save(tmp_path / "classes", text)
    command = block(text).replace(THIS, str(tmp_path / "classes")).replace("DIR", str(tmp_path / "out"))
    assert main(shlex.split(command)[1:]) == 0
    assert (tmp_path / "out" / "0000.png").is_file()


def test_names_with_quotes_newlines_and_backticks_break_neither_the_table_nor_the_blocks(tiny_turbo, tmp_path):
    odd = tmp_path / 'a "b"\n``` | c'
    odd.symlink_to(tiny_turbo)
    text = model_card(
        f"x\n{odd}",
        base="some/base",
        model=ModelFolder.open(odd),
        facts={"base": str(odd)},
        metrics={},
        config={"model": str(odd)},
        lora=True,
    )
    code = re.search(r"^(`{3,})python\n(.*?)^\1$", text, re.M | re.S)
    assert str(odd) in {node.value for node in ast.walk(ast.parse(code[2])) if isinstance(node, ast.Constant)}
    kept = re.search(r"^(`{3,})yaml\n(.*?)^\1$", text, re.M | re.S)
    assert yaml.safe_load(kept[2]) == {"model": str(odd)}
    (row,) = [line for line in text.splitlines() if line.startswith("| base |")]
    assert row.endswith(" |")
    assert [line for line in text.splitlines() if line.startswith("# ")] == [f"# {' '.join(f'x {odd}'.split())}"]
