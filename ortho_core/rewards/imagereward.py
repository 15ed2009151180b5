"""`imagereward`: ImageReward v1.0, which predicts how much people like an image as a picture of the prompt.

The network is that of the `image-reward` package. The package was written for older libraries. Functions that these have removed
are only added to a private copy of its modules, not to the rest of the process.

Axes: B images, 3 × Y × X the image, P prompts, L tokens.
"""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ortho_core.errors import UserError
from ortho_core.rewards.base import FolderOf, Preprocessing, Scoring, check_files, frozen, load_weights, read_weights
from ortho_core.rewards.clip import Loading
from ortho_core.text.parsing import NotParsedError, json_file, shown
from ortho_core.text.plain_text import one_line

WEIGHTS, CONFIG, VOCABULARY = "ImageReward.pt", "med_config.json", "vocab.txt"
FILES = ((WEIGHTS,), (CONFIG,), (VOCABULARY,))
ORIGIN = "ImageReward v1.0 (THUDM/ImageReward) and the vocab.txt of bert-base-uncased"

#: Tokens of a prompt, with the first and the last token; the model was trained with this length.
WINDOW = 35
#: Mean and standard deviation of the training set's scores before normalisation.
MEAN, STD = 0.16717362830052426, 1.0333394966054072

#: The package pins a timm that is too old for open_clip, and depends on trainers and data sets that scoring does not need. So it
#: is not part of an extra. This command installs it without its dependencies.
INSTALL = "pip install --no-deps image-reward==1.5 fairscale==0.4.13 'timm>=1.0.17'"

#: The private name of the package's modules, so that the original package can be imported too. The name is outside this
#: package, so that checks of this package's annotations do not include these modules.
PRIVATE = "_ortho_image_reward"
#: Names that `transformers.modeling_utils` had when the package was written. All but one have moved; that one is not called
#: for scoring.
MISSING = ("apply_chunking_to_forward", "find_pruneable_heads_and_indices", "prune_linear_layer")


class ImageReward(Scoring):
    """`imagereward`: 0 on average over the training set, with deviation 1."""

    name = "imagereward"

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.preprocess = Preprocessing(224)

    @staticmethod
    def load(folder: Path, device: str | torch.device = "cpu", dtype: str = "float32") -> "ImageReward":
        """Raises UserError if files are missing or damaged, or if the package `image-reward` is not installed."""
        check_files(folder, "imagereward", FILES, ORIGIN)
        tokenizer = _tokenizer(folder / VOCABULARY)
        _check_config(folder / CONFIG, len(tokenizer))
        package, blip = _package()
        # The package would download the tokenizer.
        blip.init_tokenizer = lambda: tokenizer
        model = package.ImageReward(med_config=str(folder / CONFIG))
        # Projections for the model's training, which scoring does not use.
        del model.blip.vision_proj, model.blip.text_proj
        needed = model.state_dict().keys()
        weights = read_weights(folder / WEIGHTS, "imagereward")
        positions = "blip.text_encoder.embeddings.position_ids"  # 0, 1, 2, ...; some versions do not save it
        weights = {positions: model.state_dict()[positions]} | {k: v for k, v in weights.items() if k in needed}
        load_weights(model, weights, folder / WEIGHTS, "imagereward")
        model = frozen(model, device, dtype)
        model.mlp.to(torch.promote_types(getattr(torch, dtype), torch.float32))  # small, and its output is the score
        return ImageReward(model, tokenizer)

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """`tokens` and `attended` (P, L). The text encoder attends to the image, so it can only run with one."""
        tokens = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=WINDOW, return_tensors="pt"
        ).to(self.model.blip.text_encoder.device)
        return {"tokens": tokens.input_ids, "attended": tokens.attention_mask}

    def score_encoded(self, images: Tensor, encoded: Mapping[str, Tensor]) -> Tensor:
        """(B,) of images (B, 3, Y, X) in [0, 1]."""
        text_encoder = self.model.blip.text_encoder
        features = self.model.blip.visual_encoder(self.preprocess(images).to(text_encoder.dtype))
        output = text_encoder(
            encoded["tokens"],
            attention_mask=encoded["attended"],
            encoder_hidden_states=features,
            encoder_attention_mask=torch.ones(features.shape[:-1], dtype=torch.long, device=features.device),
            return_dict=True,
        )
        first = output.last_hidden_state[:, 0]
        rating: Tensor = self.model.mlp(first.to(self.model.mlp.layers[0].weight.dtype))
        return (rating[:, 0] - MEAN) / STD


def files(folder: Path, folder_of: FolderOf) -> list[Path]:
    """The files of `imagereward`. Raises UserError for missing ones."""
    check_files(folder, "imagereward", FILES, ORIGIN)
    return [folder / file for (file,) in FILES]


def load(folder: Path, loading: Loading) -> ImageReward:
    """Raises UserError if files are missing or damaged, or if the package `image-reward` is not installed."""
    return ImageReward.load(folder, loading.device, loading.dtype)


def _tokenizer(file: Path) -> Any:
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(vocab=str(file), do_lower_case=True)
    # As in the package: tokens of other tasks than scoring, which the embedding table has too.
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_tokens(["[ENC]"], special_tokens=True)
    return tokenizer


def _check_config(file: Path, vocabulary: int) -> None:
    try:
        size = json_file(file).get("vocab_size")
    except (OSError, NotParsedError) as error:
        raise UserError(f"reward imagereward: {file} is not the model's configuration: {one_line(error)}") from error
    if size != vocabulary:
        raise UserError(
            f"reward imagereward: {file} states a vocab_size of {shown(size)}, but {VOCABULARY} next to it has "
            f"{vocabulary - 2} lines (two tokens are added); accepted: the vocab.txt of bert-base-uncased, 30522 lines"
        )


def _package() -> tuple[Any, Any]:
    """The package's modules `ImageReward` and `blip_pretrain`, imported under a private name without its other modules."""
    if f"{PRIVATE}.ImageReward" not in sys.modules:
        spec = importlib.util.find_spec("ImageReward")
        folders = spec and spec.submodule_search_locations
        if not folders or not all(map(importlib.util.find_spec, ("fairscale", "timm"))):
            raise UserError(f"reward imagereward needs image-reward, fairscale and timm: {INSTALL}")
        root = Path(next(iter(folders)))
        # Empty replacements for the two packages whose __init__ imports trainers, data sets and other scores.
        for name, folder in ((PRIVATE, root), (f"{PRIVATE}.models", root / "models")):
            stand_in = ModuleType(name)
            stand_in.__path__ = [str(folder)]
            sys.modules[name] = stand_in
        with _older_libraries():
            importlib.import_module(f"{PRIVATE}.ImageReward")
        blip: Any = sys.modules[f"{PRIVATE}.models.BLIP.blip_pretrain"]
        blip.BertModel = _for_this_transformers(blip.BertModel)
    return sys.modules[f"{PRIVATE}.ImageReward"], sys.modules[f"{PRIVATE}.models.BLIP.blip_pretrain"]


@contextmanager
def _older_libraries() -> Iterator[None]:
    """A context for the package's import: it adds names that transformers removed, and restores warnings and verbosity."""
    from transformers import logging, modeling_utils, pytorch_utils

    added = [name for name in MISSING if not hasattr(modeling_utils, name)]
    verbosity = logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in added:
            setattr(modeling_utils, name, getattr(pytorch_utils, name, None))
        try:
            yield
        finally:
            for name in added:
                delattr(modeling_utils, name)
            logging.set_verbosity(verbosity)


def _for_this_transformers(bert: Any) -> Any:
    """The package's BERT with the methods that its base class had in older versions of transformers."""

    class Bert(bert):  # type: ignore[misc]
        def init_weights(self) -> None:
            """Does nothing: all weights come from the file."""

        def get_head_mask(self, head_mask: None, layers: int) -> list[None]:
            """Masks no head."""
            return [None] * layers

        def invert_attention_mask(self, mask: Tensor) -> Tensor:
            """The additive mask (B, 1, 1, K) of a mask (B, K): 0 where it is 1, else the lowest number."""
            hidden = 1 - mask[:, None, None, :].to(self.dtype)
            return hidden * torch.finfo(self.dtype).min

    return Bert
