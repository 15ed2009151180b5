"""`pickscore`: PickScore v1, which predicts which of two pictures of a prompt people prefer.

Axes: B images, 3 × Y × X the image, E the joint embedding, P prompts.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ortho_core.rewards.base import FolderOf, Scoring, cosine
from ortho_core.rewards.clip import ClipTower, Loading, clip_files

ORIGIN = (
    "PickScore v1 (yuvalkirstain/PickScore_v1), with the tokenizer and preprocessor files of the CLIP ViT-H/14 it was made "
    "from (laion/CLIP-ViT-H-14-laion2B-s32B-b79K)"
)


class PickScore(Scoring):
    """`pickscore`: the cosine between the embeddings of image and prompt times the model's scale, about 18 to 24.

    e^(difference of two scores) are the odds that people prefer one picture over the other.
    """

    name = "pickscore"

    def __init__(self, tower: ClipTower) -> None:
        self.tower = tower

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """`text`: unit embeddings (P, E)."""
        return {"text": self.tower.embed_prompts(prompts)}

    def score_embedding(self, embedding: Tensor, encoded: Mapping[str, Tensor]) -> Tensor:
        """(B,) of unit embeddings (B, E)."""
        return self.tower.logit_scale * cosine(embedding, encoded["text"])

    def score_encoded(self, images: Tensor, encoded: Mapping[str, Tensor]) -> Tensor:
        """(B,) of images (B, 3, Y, X) in [0, 1]."""
        return self.score_embedding(self.tower.embed_images(images), encoded)


def files(folder: Path, folder_of: FolderOf) -> list[Path]:
    """The files of `pickscore`. Raises UserError for missing ones."""
    return clip_files(folder, "pickscore", ORIGIN)


def load(folder: Path, loading: Loading) -> PickScore:
    """Raises UserError if the folder is not a CLIP model's."""
    return PickScore(loading.tower(folder, "pickscore", ORIGIN))
