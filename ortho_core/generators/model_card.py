"""The model card (README.md) in a checkpoint folder: the model, its base, its metrics and how to use it."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence

import yaml

from ortho_core.generators.lora_files import KOHYA_WEIGHTS, READERS
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.single_file import SINGLE_FILE
from ortho_core.text.plain_text import one_line, printable

USE = """from diffusers import {classes}

{load}image = pipeline("a prompt like those it was trained on", {call}).images[0]
"""

#: Placeholder for the path of the card's folder.
THIS = "path/of/this/folder"
#: Use in other programs.
USE_ELSEWHERE = """In {programs}: copy `{file}` from this folder to their {what} folder; use 1 step and CFG 1.
"""

USE_CLASSES = "ortho generate --model path/of/this/folder --prompt {prompt} --out DIR\n"


def model_card(
    title: str,
    *,
    base: str,
    model: ModelFolder | None = None,
    facts: Mapping[str, object],
    metrics: Mapping[str, float],
    config: Mapping[str, object],
    lora: bool,
    single_file: bool = False,
    classes: Sequence[str] = (),
    made: str = "",
) -> str:
    """A model card in the Hugging Face hub's format. `base` is the name of the model that was fine-tuned, or empty. `model` is
    the pipeline that the usage code loads for a LoRA; otherwise a pipeline with the same one-step settings.

    `classes` are those of a class-conditional generator; without classes the model is a diffusers pipeline. `facts` become a
    table of two columns, `metrics` a table of names and numbers, `config` a YAML block. `made` tells how a model was made that
    was not trained.
    """
    tags = ["class-conditional" if classes else "text-to-image", "one-step", "ortho", *(["lora"] if lora else [])]
    head: dict[str, object] = {} if classes else {"library_name": "diffusers"}
    if base:
        head |= {"base_model": base} | ({} if made else {"base_model_relation": "adapter" if lora else "finetune"})
    front = yaml.safe_dump({**head, "tags": tags}, sort_keys=False)
    use = _block("", USE_CLASSES.format(prompt=shlex.quote(classes[0]))) if classes else _use(model, lora)
    if lora or single_file:
        file, what = (model and model.adapter.lora_elsewhere, "LoRAs") if lora else (SINGLE_FILE, "checkpoints")
        programs = READERS.get(file or "", READERS[KOHYA_WEIGHTS])
        use += f"\n\n{USE_ELSEWHERE.format(programs=programs, file=file, what=what)}" if file else ""
    how = one_line(made, 1000) or ("fine-tuned" if base else "trained")
    parts = [
        f"---\n{front}---\n\n# {one_line(title)}\n\nA one-step generator {how} with Ortho.\n",
        _table(("", ""), facts),
    ]
    if metrics:
        measured = _table(("metric", "value"), {name: f"{value:.5g}" for name, value in metrics.items()})
        parts.append(f"## Metrics\n\n{measured}")
    parts.append(f"## Use\n\n{use}\n")
    if config:
        parts.append(f"## Configuration\n\n{_block('yaml', yaml.safe_dump(dict(config), sort_keys=True))}\n")
    return printable("\n".join(parts))


def _block(language: str, text: str) -> str:
    """Text as a code block, fenced by more backticks than the longest run in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}{fence}"


def _use(model: ModelFolder | None, lora: bool) -> str:
    """Code that makes an image with diffusers only."""
    classes, load, size = ["DiffusionPipeline"], _from_pretrained(THIS), ""
    if lora:
        assert model is not None
        if not model.checkpoint:
            load = _from_pretrained(str(model.path), model)
        else:
            classes, load, size = _from_single_file(model)
        load += f"pipeline.load_lora_weights({_quoted(THIS)})\n"
    if model is not None and (model.own_size is not None or not model.adapter.call_knows_size):
        Y, X = model.image_size
        size = f"height={Y}, width={X}, "
    recipe = model.recipe if model is not None else None
    step = "num_inference_steps=1" if recipe is None or recipe.timestep is None else f"timesteps=[{recipe.timestep}]"
    options: Mapping[str, object] = {"guidance_scale": 0.0}
    if model is not None:
        options = model.adapter.own_call(model.network_config, recipe.guidance if recipe is not None else None)
    call = size + ", ".join([step, *(f"{name}={value!r}" for name, value in options.items())])
    return _block("python", USE.format(classes=", ".join(classes), load=load, call=call))


def _from_pretrained(folder: str, model: ModelFolder | None = None) -> str:
    # diffusers loads a variant only if it is named, even if no other exists.
    needed = [next(iter(variants)) for variants in model.weights.values() if "" not in variants] if model else []
    variant = f", variant={_quoted(needed[0])}" if needed else ""
    return f"pipeline = DiffusionPipeline.from_pretrained({_quoted(folder)}{variant})\n"


def _from_single_file(model: ModelFolder) -> tuple[list[str], str, str]:
    """Names to import, the lines that load a checkpoint, and the image size arguments if its configurations lack the size."""
    load = f"pipeline = {model.kind}.from_single_file({_quoted(str(model.path))}"
    if not model.built_in:
        return [model.kind], f"{load}, config={_quoted(str(model.configs))})\n", ""
    # diffusers would use the configurations of the family's first model from the hub, which have many steps and another size.
    recipe, (Y, X) = model.recipe, model.image_size
    assert recipe is not None
    changed = {name: recipe.config[name] for name in ("prediction_type", "timestep_spacing") if name in recipe.config}
    options = ", ".join(f"{name}={_quoted(str(value))}" for name, value in changed.items())
    scheduler = f"pipeline.scheduler = {recipe.scheduler}.from_config(pipeline.scheduler.config, {options})\n"
    return [recipe.scheduler, model.kind], f"{load})\n{scheduler}", f"height={Y}, width={X}, "


def _quoted(text: str) -> str:
    """A text as a Python literal in double quotes: JSON, with control characters and line separators escaped."""
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in json.dumps(text, ensure_ascii=False))


def _cell(value: object) -> str:
    return one_line(value, 2000).replace("|", r"\|")


def _table(head: tuple[str, str], rows: Mapping[str, object]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join(lines) + "\n"
