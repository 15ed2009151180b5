"""Rewards by name, `hpsv2:5,imagereward:1,pickscore:0.05`; the folders of their weights, and fingerprints of those."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from ortho_core.errors import UserError
from ortho_core.rewards.kinds import ALIASES, KINDS, MIXTURES, accepted_names
from ortho_core.storage.hashes import content_hash

#: Folders of rewards: one root of all, or by name; the name "" stands for the root of those that are not named.
Folders = Path | Mapping[str, Path]

ROOT = Path("models")


def parse_rewards(spec: str) -> dict[str, float]:
    """Weights by name of `name:weight,...`; a weight left out is 1, and the weight of a mixture multiplies its parts'.

    Raises UserError for a name that is none, a weight that is no number above 0, and a reward that is there twice.
    """
    weights: dict[str, float] = {}
    for item in spec.split(","):
        given, colon, weight = (part.strip() for part in item.partition(":"))
        name = ALIASES.get(given, given)
        if name not in KINDS and name not in MIXTURES:
            raise UserError(f"reward {given!r} in {spec!r} is unknown; accepted: {', '.join(accepted_names())}")
        factor = _weight(weight, given, spec) if colon else 1.0
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
        raise UserError(f"the weight {text!r} of reward {name} in {spec!r} is not accepted; accepted: a number above 0")
    return weight


def reward_folder(name: str, folders: Folders = ROOT) -> Path:
    """Where the files of reward `name` are looked for; those that no folder is given for under `models/`.

    Raises UserError for a folder that is given to a reward that there is not.
    """
    if isinstance(folders, Path):
        return folders / KINDS[name].folder
    # A name and its alias may both be there, defaults before what a user gave: the last one counts.
    given = {ALIASES.get(key, key): Path(folder) for key, folder in folders.items()}
    if unknown := sorted(given.keys() - KINDS.keys() - {""}):
        accepted = ", ".join(sorted([*KINDS, *ALIASES]))
        raise UserError(f"a folder is given for reward {unknown[0]!r}, which is unknown; accepted: {accepted}")
    return given.get(name, given.get("", ROOT) / KINDS[name].folder)


def check_reward_files(name: str, folders: Folders = ROOT) -> list[Path]:
    """The files that make reward `name` what it is. Raises UserError for those that are missing."""
    return KINDS[name].files(reward_folder(name, folders), partial(reward_folder, folders=folders))


def reward_fingerprints(names: Iterable[str], folders: Folders = ROOT) -> dict[str, str]:
    """SHA-256 (16 hex digits) by reward over the names and contents of its files. Raises UserError for missing ones."""
    files = {name: check_reward_files(name, folders) for name in names}  # all are there before the first is read
    return {name: fingerprint_of(found) for name, found in files.items()}


def fingerprint_of(files: Iterable[Path]) -> str:
    """SHA-256 (16 hex digits) over the names and contents of files."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{content_hash(file)}\0".encode())
    return digest.hexdigest()[:16]
