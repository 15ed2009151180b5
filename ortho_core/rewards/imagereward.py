"""`imagereward`: ImageReward v1.0, how well people would like the image as a picture of the prompt.

The network is the `image-reward` package's own. That package was written for older libraries; what it lacks is supplied to
a private copy of its modules, so that nothing else in the process sees it.

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

#: Tokens of a prompt, with the first and the last; the model was trained on this many.
WINDOW = 35
#: Scores of the training set have this mean and this deviation before they are normalised.
MEAN, STD = 0.16717362830052426, 1.0333394966054072

#: The package pins a timm that is too old for open_clip, and names trainers and data sets that scoring does not need. So
#: it is in no extra, and is installed without what it names, by this command.
INSTALL = "pip install --no-deps image-reward==1.5 fairscale==0.4.13 'timm>=1.0.17'"

#: The name that the package's modules have here, so that the package itself can be imported beside them. It is no part of
#: this package: what applies to its modules, such as checks of annotations, does not apply to those.
PRIVATE = "_ortho_image_reward"
#: Names that `transformers.modeling_utils` had when the package was written. They have moved, but for one, which is not
#: called when scoring.
MISSING = ("apply_chunking_to_forward", "find_pruneable_heads_and_indices", "prune_linear_layer")


class ImageReward(Scoring):
    """`imagereward`: 0 on average over the training set, with deviation 1."""

    name = "imagereward"

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.preprocess = Preprocessing(224)

    @staticmethod
    def load(folder: Path, device: str | torch.device = "cpu", dtype: str = "float32") -> "ImageReward":
        """Raises UserError if files are missing or damaged, or the package `image-reward` is."""
        check_files(folder, "imagereward", FILES, ORIGIN)
        tokenizer = _tokenizer(folder / VOCABULARY)
        _check_config(folder / CONFIG, len(tokenizer))
        package, blip = _package()
        # The package asks a hub for the tokenizer.
        blip.init_tokenizer = lambda: tokenizer
        model = package.ImageReward(med_config=str(folder / CONFIG))
        # Projections for the model's training: published, and not asked when scoring.
        del model.blip.vision_proj, model.blip.text_proj
        own = model.state_dict().keys()
        weights = read_weights(folder / WEIGHTS, "imagereward")
        positions = "blip.text_encoder.embeddings.position_ids"  # 0, 1, 2, ..., which not every version saves
        weights = {positions: model.state_dict()[positions]} | {k: v for k, v in weights.items() if k in own}
        load_weights(model, weights, folder / WEIGHTS, "imagereward")
        model = frozen(model, device, dtype)
        model.mlp.to(torch.promote_types(getattr(torch, dtype), torch.float32))  # small, and it makes the score
        return ImageReward(model, tokenizer)

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """`tokens` and `attended` (P, L); the text encoder attends to the image, so it cannot run without one."""
        tokens = self.tokenizer(
            prompts, padding="max_length", truncation=True, max_length=WINDOW, return_tensors="pt"
        ).to(self.model.blip.text_encoder.device)
        return {"tokens": tokens.input_ids, "attended": tokens.attention_mask}

    def score_encoded(self, images: Tensor, encoded: Mapping[str, Tensor]) -> Tensor:
        """(B,) of images (B, 3, Y, X) in [0, 1]."""
        text_encoder = self.model.blip.text_encoder
        seen = self.model.blip.visual_encoder(self.preprocess(images).to(text_encoder.dtype))
        found = text_encoder(
            encoded["tokens"],
            attention_mask=encoded["attended"],
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:-1], dtype=torch.long, device=seen.device),
            return_dict=True,
        )
        first = found.last_hidden_state[:, 0]
        rating: Tensor = self.model.mlp(first.to(self.model.mlp.layers[0].weight.dtype))
        return (rating[:, 0] - MEAN) / STD


def files(folder: Path, folder_of: FolderOf) -> list[Path]:
    """Raises UserError for files that are missing."""
    check_files(folder, "imagereward", FILES, ORIGIN)
    return [folder / file for (file,) in FILES]


def load(folder: Path, loading: Loading) -> ImageReward:
    """Raises UserError if files are missing or damaged, or the package `image-reward` is."""
    return ImageReward.load(folder, loading.device, loading.dtype)


def _tokenizer(file: Path) -> Any:
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(vocab=str(file), do_lower_case=True)
    # As the package adds them: tasks that scoring is none of have tokens of their own, in the table of embeddings too.
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_tokens(["[ENC]"], special_tokens=True)
    return tokenizer


def _check_config(file: Path, vocabulary: int) -> None:
    try:
        found = json_file(file).get("vocab_size")
    except (OSError, NotParsedError) as error:
        raise UserError(f"reward imagereward: {file} is not the model's configuration: {one_line(error)}") from error
    if found != vocabulary:
        raise UserError(
            f"reward imagereward: {file} states a vocab_size of {shown(found)}, and {VOCABULARY} beside it has "
            f"{vocabulary - 2} lines, to which two tokens are added; accepted: the vocab.txt of bert-base-uncased, 30522 lines"
        )


def _package() -> tuple[Any, Any]:
    """The package's modules `ImageReward` and `blip_pretrain`, imported under a private name without the rest of it."""
    if f"{PRIVATE}.ImageReward" not in sys.modules:
        found = importlib.util.find_spec("ImageReward")
        folders = found and found.submodule_search_locations
        if not folders or not all(map(importlib.util.find_spec, ("fairscale", "timm"))):
            raise UserError(f"reward imagereward needs image-reward and what it imports: {INSTALL}")
        root = Path(next(iter(folders)))
        # Stand-ins for the two packages whose __init__ imports trainers, data sets and other scores.
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
    """While the package is imported: names that transformers has dropped, and no changes to warnings and verbosity."""
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
    """The package's BERT with those methods that its base class had."""

    class Bert(bert):  # type: ignore[misc]
        def init_weights(self) -> None:
            """Nothing: all weights come from the file."""

        def get_head_mask(self, head_mask: None, layers: int) -> list[None]:
            """No head is masked."""
            return [None] * layers

        def invert_attention_mask(self, mask: Tensor) -> Tensor:
            """(B, 1, 1, K), 0 for what is attended to of a mask (B, K)."""
            hidden = 1 - mask[:, None, None, :].to(self.dtype)
            return hidden * torch.finfo(self.dtype).min

    return Bert
