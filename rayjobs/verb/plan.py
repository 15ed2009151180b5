"""Plans: what decides a run's result, its fingerprint, and the folder that it claims."""

import hashlib
import json
from pathlib import Path
from typing import Any

from ortho_core.errors import UserError
from ortho_core.storage.open import open_store
from ortho_core.storage.store import Store


def fingerprint(content: Any) -> str:
    """SHA-256 (16 hex digits) of JSON-ready content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def replace_text(path: Path, text: str) -> None:
    """Replace a small local file at once: a reader sees the old or the new content, never a part."""
    open_store(path.parent).replace(path.name, text.encode())


def claim(location: str | Path, plan: dict[str, Any], verb: str) -> Store:
    """Make a folder the output of `plan`, or check that it is. Raises UserError naming what differs."""
    folder = open_store(location)
    text = json.dumps(plan, indent=1) + "\n"
    try:
        if not folder.exists("plan.json"):
            foreign = [name for name in folder.entries() if name != "plan.json"]
            if foreign and not folder.exists("plan.json"):  # a second driver may have made it by now
                raise UserError(
                    f"{location} is not empty and was not made by `ortho {verb}` ({foreign[0]}, ...); choose another"
                )
            folder.create("plan.json", text.encode())
        there = json.loads(folder.read("plan.json"))
    except OSError as error:
        raise UserError(f"cannot write to {location}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{location}/plan.json is damaged: {error}; delete the folder or choose another") from error
    differing = differences(there, json.loads(text))
    if differing:
        raise UserError(
            f"{location} holds the output of another run; choose another folder, or repeat that run: "
            + "; ".join(differing)
        )
    return folder


def differences(there: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """One phrase per leaf that differs, `name: there → now`."""
    found = []
    for key in sorted({*there, *now} - {"run_fingerprint"}):
        a, b = there.get(key), now.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} was {a!r}, now {b!r}")
    return found
