"""The recipes as one notebook: `python -m tests.recipes.notebook` runs them and writes `recipes/ortho.ipynb` with its outputs.

A recipe's docstring becomes its heading, each `# %%` begins a cell. Jupyter is not needed: a cell is executed as Python, and what
its last line gives is shown as Jupyter shows it.
"""

import ast
import base64
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from PIL import Image

from tests.conftest import ROOT

RECIPES = ("match_one_image", "match_and_fine_tune", "own_reward", "own_generator", "sample_and_compare")
NOTEBOOK = ROOT / "recipes" / "ortho.ipynb"
TITLE = "# Ortho as a library\n\nThe five recipes of this folder, as one notebook. Each can be run without the others."
#: Paths in the recipes are relative to the root of the checkout; Jupyter starts in the notebook's folder.
PLACE = 'import os\n\nif not os.path.isdir("models"):\n    os.chdir("..")'


def cells_of(recipe: str) -> list[str]:
    """The heading of a recipe in Markdown, and its cells of code."""
    heading, *cells = (ROOT / "recipes" / f"{recipe}.py").read_text().split("# %%\n")
    title, _, rest = ast.literal_eval(heading.strip()).partition(": ")
    words = f"## {title.rstrip('.')}\n\n" + (rest[:1].upper() + rest[1:] or f"[{recipe}.py]({recipe}.py)")
    return [words, *(cell.strip() for cell in cells)]


def sources() -> list[tuple[str, str]]:
    """Kind and text of every cell."""
    listed = [("markdown", TITLE), ("code", PLACE)]
    for recipe in RECIPES:
        heading, *cells = cells_of(recipe)
        listed += [("markdown", heading), *(("code", cell) for cell in cells)]
    return listed


def execute(source: str, names: dict[str, Any]) -> tuple[str, object]:
    """Run a cell among the names of those before it: what it printed, and what its last line gave."""
    tree, printed, value = ast.parse(source), io.StringIO(), None
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    with redirect_stdout(printed):
        exec(compile(tree, "<cell>", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)
    return printed.getvalue(), value


def outputs_of(printed: str, value: object, number: int) -> list[dict[str, Any]]:
    """Of a cell, as nbformat 4 has them."""
    outputs: list[dict[str, Any]] = []
    if printed:
        outputs.append({"output_type": "stream", "name": "stdout", "text": printed.splitlines(keepends=True)})
    if value is not None:
        data: dict[str, Any] = {"text/plain": [repr(value)]}
        if isinstance(value, Image.Image):
            stream = io.BytesIO()
            value.quantize(128).save(stream, "PNG", optimize=True)
            data = {"image/png": base64.b64encode(stream.getvalue()).decode(), "text/plain": [f"<{value.size} image>"]}
        outputs.append({"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": data})
    return outputs


def executed() -> dict[str, Any]:
    """The notebook, its cells run in order in this process."""
    cells: list[dict[str, Any]] = []
    names: dict[str, Any] = {"__name__": "__main__"}
    number = 0
    for at, (kind, source) in enumerate(sources()):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{at:02d}", "metadata": {}}
        if kind == "code":
            number += 1
            cell |= {"execution_count": number, "outputs": outputs_of(*execute(source, names), number)}
        cells.append(cell | {"source": source.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def write(file: Path = NOTEBOOK) -> None:
    file.write_text(json.dumps(executed(), indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
