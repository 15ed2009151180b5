"""The README.md in a checkpoint folder: what the model is, what it was made from, and how it measured."""

from collections.abc import Mapping, Sequence

import yaml

from ortho_core.generators.kohya import KOHYA_WEIGHTS
from ortho_core.generators.single_file import SINGLE_FILE

USE = """```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("{folder}")
{load}image = pipeline("a prompt like those it was trained on", num_inference_steps=1, guidance_scale=0.0).images[0]
```"""

#: The same in other programs.
USE_ELSEWHERE = """In ComfyUI, Forge and A1111: `{file}` of this folder belongs into their folder of {what}; 1 step, CFG 1.
"""

USE_CLASSES = """```
ortho generate --model path/of/this/folder --prompt "{prompt}" --out DIR
```"""


def model_card(
    title: str,
    *,
    base: str,
    base_folder: str = "",
    facts: Mapping[str, object],
    metrics: Mapping[str, float],
    config: Mapping[str, object],
    lora: bool,
    single_file: bool = False,
    classes: Sequence[str] = (),
) -> str:
    """A model card in the hub's format. `base` is the name of the model that was fine-tuned, empty where none was, `base_folder`
    where it is.

    `classes` are those of a class-conditional generator; without any it is a diffusers pipeline. `facts` become a table of
    two columns, `metrics` one of names and numbers, `config` a YAML block.
    """
    tags = ["class-conditional" if classes else "text-to-image", "one-step", "ortho", *(["lora"] if lora else [])]
    head: dict[str, object] = {} if classes else {"library_name": "diffusers"}
    if base:
        head |= {"base_model": base, "base_model_relation": "adapter" if lora else "finetune"}
    front = yaml.safe_dump({**head, "tags": tags}, sort_keys=False)
    load = 'pipeline.load_lora_weights("path/of/this/folder")\n' if lora else ""
    use = USE.format(folder=base_folder if lora else "path/of/this/folder", load=load)
    if lora or single_file:
        file, what = (KOHYA_WEIGHTS, "LoRAs") if lora else (SINGLE_FILE, "checkpoints")
        use += f"\n\n{USE_ELSEWHERE.format(file=file, what=what)}"
    if classes:
        use = USE_CLASSES.format(prompt=classes[0])
    parts = [
        f"---\n{front}---\n\n# {title}\n\nA one-step generator {'fine-tuned' if base else 'trained'} with Ortho.\n",
        _table(("", ""), facts),
        "## Metrics\n",
        _table(("metric", "value"), {name: f"{value:.5g}" for name, value in metrics.items()}),
        f"## Use\n\n{use}\n",
        f"## Configuration\n\n```yaml\n{yaml.safe_dump(dict(config), sort_keys=True)}```\n",
    ]
    return "\n".join(parts)


def _table(head: tuple[str, str], rows: Mapping[str, object]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    lines += [f"| {name} | {str(value).replace('|', chr(92) + '|')} |" for name, value in rows.items()]
    return "\n".join(lines) + "\n"
