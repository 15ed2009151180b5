"""The protocol of rewards, and code that all rewards share.

A reward is one number per image and prompt, higher is better, differentiable in the image.

Axes: B images, 3 × Y × X the image, S × S the input of a reward's network, P prompts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ortho_core.device import Constant
from ortho_core.errors import UserError

#: The mean and the standard deviation of each channel for OpenAI's CLIP and all models based on it.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

M = TypeVar("M", bound=nn.Module)

#: Finds the folder of a reward by its name: a reward may need the files of another.
FolderOf = Callable[[str], Path]

#: Largest number of prompts in one pass of a text encoder, so that memory does not grow with the number of prompts.
PROMPTS_AT_ONCE = 64


@runtime_checkable
class Reward(Protocol):
    """One number per image, which depends only on that image and its prompt, not on the rest of the batch."""

    @property
    def name(self) -> str: ...

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """The reward's encoding of the prompts: named tensors with one row per prompt, computed once per prompt."""
        ...

    def score_encoded(self, images: Tensor, encoded: Mapping[str, Tensor]) -> Tensor:
        """Scores (B,) of images (B, 3, Y, X) in [0, 1], with `encoded` of B rows; differentiable in the images."""
        ...

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """(B,): `score_encoded(images, encode_prompts(prompts))`."""
        ...


class Scoring:
    """A mixin that implements a reward's `score`."""

    def score(self: Reward, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores (B,) of images (B, 3, Y, X) in [0, 1] and B prompts."""
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images and {len(prompts)} prompts; one prompt per image is needed")
        return self.score_encoded(images, self.encode_prompts(prompts))


@dataclass(frozen=True)
class Preprocessing:
    """From images (B, 3, Y, X) to the input of a network (B, 3, S, S), as the packages process 8-bit pictures.

    The packages round to 8-bit values after the resize; rounding has no gradient, so nothing is rounded here. A pixel differs by
    up to half a level from the rounded result, and by another half level from PIL, which also rounds between its two passes.
    Values outside [0, 1] are clamped, as in a saved picture: they get no gradient.
    """

    size: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    #: `crop`: the shorter side becomes S and the middle is cropped. `pad`: the longer side becomes S, the rest is black.
    fit: str = "crop"
    #: The crop if an odd number of pixels is left over. True: round the offset to the even number, as torchvision does. False:
    #: round it down, as transformers does.
    crop_to_even: bool = True
    #: A bicubic resize overshoots at edges. On 8-bit pictures the overshoot is clamped; on floats it is not.
    cut_overshoot: bool = True
    #: Mean and deviation, ready for images on any device.
    _statistics: tuple[Constant, Constant] = field(init=False, repr=False, compare=False)

    def __call__(self, images: Tensor) -> Tensor:
        images = images.clamp(0, 1)
        if images.dtype in {torch.float16, torch.bfloat16}:
            images = images.float()
        images = self._fit(images)
        mean, std = self._statistics
        return (images - mean.beside(images)) / std.beside(images)

    def __post_init__(self) -> None:
        mean, std = (torch.tensor(each, dtype=torch.float64)[:, None, None] for each in (self.mean, self.std))
        # Not at the first call: that may use fake tensors, to count memory.
        object.__setattr__(self, "_statistics", (Constant(mean), Constant(std)))

    def _fit(self, images: Tensor) -> Tensor:
        S, (Y, X) = self.size, images.shape[-2:]
        if self.fit == "pad":
            scale = S / max(Y, X)
            images = self._resize(images, (round(Y * scale), round(X * scale)))
            y, x = S - images.shape[-2], S - images.shape[-1]
            return F.pad(images, (x // 2, x - x // 2, y // 2, y - y // 2))
        longer = int(S * max(Y, X) / min(Y, X))
        images = self._resize(images, (S, longer) if Y <= X else (longer, S))
        top, left = (self._middle(side - S) for side in images.shape[-2:])
        return images[..., top : top + S, left : left + S]

    def _middle(self, over: int) -> int:
        return round(over / 2) if self.crop_to_even else over // 2

    def _resize(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        if tuple(images.shape[-2:]) == size:
            return images
        # With antialiasing this is PIL's filter, with its cubic coefficient of -0.5.
        bicubic = partial(F.interpolate, mode="bicubic", align_corners=False, antialias=True)
        if not self.cut_overshoot:
            return bicubic(images, size=size)
        # PIL resizes along the rows first, and stores 8-bit numbers between the two passes.
        return bicubic(bicubic(images, size=(images.shape[-2], size[1])).clamp(0, 1), size=size).clamp(0, 1)


def unit(embedding: Tensor) -> Tensor:
    """Embeddings (B, E) normalised to L2 norm 1, at least in float32: half precision is too coarse for rewards."""
    return F.normalize(embedding.to(torch.promote_types(embedding.dtype, torch.float32)), dim=-1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(B,): the cosine of each row of `a` with the same row of `b`, for unit vectors (B, E)."""
    return (a * b).sum(-1)


def in_chunks(encode: Callable[[list[str]], Tensor], prompts: list[str]) -> Tensor:
    """One row per prompt, (P, ...), without gradients, for a limited number of prompts at once."""
    if not prompts:
        raise ValueError("no prompts to encode")
    with torch.no_grad():
        starts = range(0, len(prompts), PROMPTS_AT_ONCE)
        return torch.cat([encode(prompts[start : start + PROMPTS_AT_ONCE]) for start in starts])


def frozen(model: M, device: str | torch.device, dtype: str) -> M:
    """The model in `dtype` on the device, without dropout and without gradients of weights."""
    return model.to(device, getattr(torch, dtype)).eval().requires_grad_(False)


def who(reward: str) -> str:
    """The name of a reward in messages; a model that is not a reward is named by its option, `--features tiny-clip`."""
    return reward if reward.startswith("--") else f"reward {reward}"


def check_files(folder: Path, reward: str, choices: Sequence[Sequence[str]], origin: str) -> None:
    """Raises UserError unless `folder` has at least one file of each choice; `origin` is the model that they belong to."""
    missing = [" or ".join(names) for names in choices if not any((folder / name).is_file() for name in names)]
    if missing:
        problem = "has no" if folder.is_dir() else "does not exist and should hold"
        raise UserError(f"{who(reward)}: {folder} {problem} {', '.join(missing)}; put the files of {origin} there")


def read_weights(file: Path, reward: str) -> dict[str, Any]:
    """The content of a .pt or .pth file, with only tensors and plain containers. Raises UserError if it cannot be read so."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds, for files cut short, pickles of code, other formats
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{who(reward)}: {file} is not a file of PyTorch weights: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"{who(reward)}: {file} holds a {type(content).__name__}; accepted: a dict of tensors")
    return content


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], file: Path, reward: str) -> None:
    """Load the weights into the model. Raises UserError, with the file, for missing or unknown weights and wrong shapes."""
    expected = model.state_dict()
    wrong = [f"no {name}" for name in expected if name not in weights]
    wrong += [f"{name}, which it does not have" for name in weights if name not in expected]
    for name in expected.keys() & weights.keys():
        if expected[name].shape != weights[name].shape:
            wrong.append(f"{name} of shape {tuple(weights[name].shape)}, not {tuple(expected[name].shape)}")
    if wrong:
        more = f" and {len(wrong) - 3} more differences" if len(wrong) > 3 else ""
        raise UserError(f"{who(reward)}: {file} does not fit the model: {'; '.join(wrong[:3])}{more}")
    model.load_state_dict(dict(weights))
