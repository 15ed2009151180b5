"""Figures of the code's structure: `python -m benchmarks.house [CHECKOUT]`.

It counts what `make lint` does not check: modules at the root of a package, `Any`, jobs and plans without a type.
"""

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("ortho_core", "rayjobs")
PLANS = re.compile(r"\b(?:plan|sealed)\[")


def sources(root: Path) -> dict[Path, str]:
    return {file: file.read_text() for package in PACKAGES for file in sorted((root / package).rglob("*.py"))}


def imported(file: Path, text: str, root: Path) -> Iterator[Path]:
    """The modules of the packages that a module imports, at the top or inside a function."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
            place = root.joinpath(*node.module.split("."))
            for name in node.names:
                one = place / f"{name.name}.py"
                found = one if one.is_file() else place.with_suffix(".py")
                yield found if found.is_file() else place / "__init__.py"


def circles(graph: dict[Path, set[Path]]) -> int:
    """Groups of modules that import each other, directly or through others."""

    def reached(start: Path) -> set[Path]:
        seen, todo = set[Path](), [start]
        while todo:
            for after in graph.get(todo.pop(), set()) - seen:
                seen.add(after)
                todo.append(after)
        return seen

    closure = {file: reached(file) for file in graph}
    return len({frozenset(b for b in closure[a] if a in closure.get(b, ())) for a in graph if a in closure[a]})


def figures(root: Path) -> dict[str, int]:
    """The counts of a checkout, by name."""
    texts = sources(root)
    graph = {file: {*imported(file, text, root)} - {file} for file, text in texts.items()}
    every = "\n".join(texts.values())
    return {
        "import circles": circles(graph),
        **{f"modules directly in {package}/": len([*(root / package).glob("*.py")]) for package in PACKAGES},
        "`job: Any`": every.count("job: Any"),
        "uses of `Any`": len(re.findall(r"\bAny\b", every)),
        "subscripts of a plan": len(PLANS.findall(every)),
        "lines of the longest module": max(text.count("\n") for text in texts.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", nargs="?", type=Path, default=Path(__file__).resolve().parents[1])
    for name, value in figures(parser.parse_args().checkout).items():
        print(f"{name:32}{value:5}")


if __name__ == "__main__":
    main()
