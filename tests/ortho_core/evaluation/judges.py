"""Pictures of noise, and the judges that tests have look at them."""

import torch

from ortho_core.evaluation.features import TINY_CLIP, find_features
from ortho_core.evaluation.judge import Judge, JudgeModels

TEXTS = ["a red handwritten three on a white background", "a blue handwritten one on a black background"]


def pictures(count, size=32, seed=0):
    return torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def judges(**options):
    tiny = find_features("tiny-clip", TINY_CLIP.parent)
    usual = {"features": tiny, "cmmd": None, "rewards": "clip", "reward_folders": {"clip": TINY_CLIP}, "lpips": None}
    return Judge(JudgeModels(**{**usual, **options}), "cpu")
