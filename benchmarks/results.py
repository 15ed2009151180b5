"""What a benchmark leaves."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_results(results: Mapping[str, Any], out: Path | None) -> None:
    """As JSON into a file, whose folder is made; nowhere without one."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n")
