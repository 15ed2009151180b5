"""The rewards that there are: one line for each. A new reward is a module with `files` and `load`, and its line here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ortho_core.rewards import aesthetic, clip, hpsv2, imagereward, pickscore
from ortho_core.rewards.base import FolderOf, Reward
from ortho_core.rewards.clip import Loading


@dataclass(frozen=True)
class RewardKind:
    """A reward by name: its folder under the root of all, its files, its loader."""

    folder: str
    #: The files that make it what it is, from its folder and a way to find the folders of others. Raises UserError.
    files: Callable[[Path, FolderOf], list[Path]]
    #: The model ready to score. Raises UserError for files that are missing or damaged.
    load: Callable[[Path, Loading], Reward]


KINDS = {
    "clip": RewardKind("clip-vit-large-patch14", clip.files, clip.load),
    "aesthetic": RewardKind("aesthetic", aesthetic.files, aesthetic.load),
    "pickscore": RewardKind("pickscore-v1", pickscore.files, pickscore.load),
    "imagereward": RewardKind("imagereward", imagereward.files, imagereward.load),
    "hpsv2.0": RewardKind("hpsv2", partial(hpsv2.files, "hpsv2.0"), partial(hpsv2.load, "hpsv2.0")),
    "hpsv2.1": RewardKind("hpsv2", partial(hpsv2.files, "hpsv2.1"), partial(hpsv2.load, "hpsv2.1")),
}
#: Other names. Of HPSv2 the newer version is meant unless the older is asked for.
ALIASES = {"hpsv2": "hpsv2.1"}
#: Names for several rewards at once, with their weights.
MIXTURES = {"hybrid": {"aesthetic": 1.0, "clip": 0.25}}


def accepted_names() -> list[str]:
    """All names that stand for rewards."""
    return sorted([*KINDS, *ALIASES, *MIXTURES])
