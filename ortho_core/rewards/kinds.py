"""The table of rewards. A new reward is a module with `files` and `load`, and a line here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ortho_core.rewards import aesthetic, clip, hpsv2, imagereward, pickscore
from ortho_core.rewards.base import FolderOf, Reward
from ortho_core.rewards.clip import Loading


@dataclass(frozen=True)
class RewardKind:
    """A reward: its folder below the root of all rewards, its files, its loader."""

    folder: str
    #: The files that decide its scores, from its folder and a function that finds other rewards' folders. Raises UserError.
    files: Callable[[Path, FolderOf], list[Path]]
    #: The loaded reward. Raises UserError for missing or damaged files.
    load: Callable[[Path, Loading], Reward]


KINDS = {
    "clip": RewardKind("clip-vit-large-patch14", clip.files, clip.load),
    "aesthetic": RewardKind("aesthetic", aesthetic.files, aesthetic.load),
    "pickscore": RewardKind("pickscore-v1", pickscore.files, pickscore.load),
    "imagereward": RewardKind("imagereward", imagereward.files, imagereward.load),
    "hpsv2.0": RewardKind("hpsv2", partial(hpsv2.files, "hpsv2.0"), partial(hpsv2.load, "hpsv2.0")),
    "hpsv2.1": RewardKind("hpsv2", partial(hpsv2.files, "hpsv2.1"), partial(hpsv2.load, "hpsv2.1")),
}
#: Other names. `hpsv2` is the newer version.
ALIASES = {"hpsv2": "hpsv2.1"}
#: Names of weighted sums of several rewards.
MIXTURES = {"hybrid": {"aesthetic": 1.0, "clip": 0.25}}


def accepted_names() -> list[str]:
    """All names of rewards, aliases and mixtures."""
    return sorted([*KINDS, *ALIASES, *MIXTURES])
