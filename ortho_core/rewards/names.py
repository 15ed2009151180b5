"""Rewards by name, such as `hpsv2:5,imagereward:1,pickscore:0.05`, their folders, and fingerprints of their files."""

import difflib
import hashlib
import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from ortho_core.errors import UserError
from ortho_core.rewards.kinds import ALIASES, KINDS, MIXTURES, accepted_names
from ortho_core.storage.hashes import content_hash

#: Folders of rewards: one root for all, or a folder by name; the name "" is the root of all rewards that are not named.
Folders = Path | Mapping[str, Path]

ROOT = Path("models")


def parse_rewards(spec: str) -> dict[str, float]:
    """Weights by name from `name:weight,...`. The default weight is 1; the weight of a mixture multiplies those of its parts.

    Raises UserError for an unknown name, a weight that is not a number above 0, and a reward that appears twice.
    """
    weights: dict[str, float] = {}
    for item in spec.split(","):
        written, colon, weight = (part.strip() for part in item.partition(":"))
        name = ALIASES.get(written, written)
        if name not in KINDS and name not in MIXTURES:
            close = difflib.get_close_matches(written, accepted_names(), n=1)
            where = "" if written == spec.strip() else f" in {spec!r}"
            raise UserError(
                f"reward {written!r}{where} is unknown{f', did you mean {close[0]}?' if close else ''}; accepted: "
                f"{', '.join(accepted_names())} (a function of your own: ortho_core.raise_reward in Python)"
            )
        factor = _weight(weight, written, spec) if colon else 1.0
        for part, share in MIXTURES.get(name, {name: 1.0}).items():
            if part in weights:
                raise UserError(f"reward {part} is in {spec!r} twice; accepted: each reward once, with one weight")
            weights[part] = factor * share
    return weights


def _weight(text: str, name: str, spec: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (0 < weight < math.inf):
        raise UserError(f"the weight {text!r} of reward {name} in {spec!r} is wrong; accepted: a number above 0")
    return weight


def reward_folder(name: str, folders: Folders = ROOT) -> Path:
    """The folder of reward `name`, by default below `models/`.

    Raises UserError if `folders` names an unknown reward.
    """
    if isinstance(folders, Path):
        return folders / KINDS[name].folder
    # A name and its alias may both appear, the default before the user's: the last one counts.
    by_name = {ALIASES.get(key, key): Path(folder) for key, folder in folders.items()}
    if unknown := sorted(by_name.keys() - KINDS.keys() - {""}):
        accepted = ", ".join(sorted([*KINDS, *ALIASES]))
        raise UserError(f"a folder is given for reward {unknown[0]!r}, which is unknown; accepted: {accepted}")
    return by_name.get(name, by_name.get("", ROOT) / KINDS[name].folder)


def check_reward_files(name: str, folders: Folders = ROOT) -> list[Path]:
    """The files that decide the scores of reward `name`. Raises UserError for missing ones."""
    return KINDS[name].files(reward_folder(name, folders), partial(reward_folder, folders=folders))


def reward_fingerprints(names: Iterable[str], folders: Folders = ROOT) -> dict[str, str]:
    """By reward, SHA-256 (16 hex digits) over the names and contents of its files. Raises UserError for missing ones."""
    files = {name: check_reward_files(name, folders) for name in names}  # checks all before the first is read
    return {name: fingerprint_of(paths) for name, paths in files.items()}


def fingerprint_of(files: Iterable[Path]) -> str:
    """SHA-256 (16 hex digits) over the names and contents of files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{content_hash(file)}\0".encode())
    return digest.hexdigest()[:16]
