"""What a reward is: one number per image and prompt, higher is better, differentiable in the image; and what all share.

Axes: B images, 3 × Y × X the image, S × S what a reward's network sees, P prompts.
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

#: The mean and the deviation of each channel that OpenAI's CLIP was trained with, and with it all that descend from it.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

M = TypeVar("M", bound=nn.Module)

#: Finds the folder of a reward by its name: a reward may need the files of another.
FolderOf = Callable[[str], Path]

#: Prompts in one pass of a text encoder, so that a file of prompts does not need memory in proportion.
PROMPTS_AT_ONCE = 64


@runtime_checkable
class Reward(Protocol):
    """One number per image, which depends on that image and its prompt alone, whatever else is in the batch."""

    @property
    def name(self) -> str: ...

    def encode_prompts(self, prompts: list[str]) -> dict[str, Tensor]:
        """What the reward needs to know of the prompts: named tensors of one row per prompt, computed once for each."""
        ...

    def score_encoded(self, images: Tensor, encoded: Mapping[str, Tensor]) -> Tensor:
        """(B,) of images (B, 3, Y, X) in [0, 1] and `encoded` of B rows; differentiable in the images."""
        ...

    def score(self, images: Tensor, prompts: list[str]) -> Tensor:
        """(B,): `score_encoded(images, encode_prompts(prompts))`."""
        ...


class Scoring:
    """Gives a reward its `score`."""

    def score(self: Reward, images: Tensor, prompts: list[str]) -> Tensor:
        """(B,) of images (B, 3, Y, X) in [0, 1] and B prompts."""
        if len(images) != len(prompts):
            raise ValueError(f"{len(images)} images and {len(prompts)} prompts; one prompt per image is needed")
        return self.score_encoded(images, self.encode_prompts(prompts))


@dataclass(frozen=True)
class Preprocessing:
    """From images (B, 3, Y, X) to what a network sees, (B, 3, S, S), as the packages do with 8-bit pictures.

    The packages round to whole grey levels after the resize, which has no gradient; here nothing is rounded, so a pixel
    differs by up to half a level from the rounding of the result, and by another from PIL's between its two passes. Values
    outside of [0, 1] are cut off, as saving the picture would: they get no gradient, those inside get all of theirs.
    """

    size: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    #: `crop`: the shorter side becomes S and the middle is cut out. `pad`: the longer side does, with black beside it.
    fit: str = "crop"
    #: Which of the two middles is cut out where an odd number of pixels is over: torchvision's, the even one of the two
    #: halves, or transformers', always the first.
    crop_to_even: bool = True
    #: A bicubic resize overshoots at edges. On 8-bit pictures that is cut off; on floats it is not.
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
        # At once: the first call may be one that counts memory, with tensors that hold no numbers.
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
        # With antialiasing this is PIL's filter, cubic coefficient -0.5 included.
        bicubic = partial(F.interpolate, mode="bicubic", align_corners=False, antialias=True)
        if not self.cut_overshoot:
            return bicubic(images, size=size)
        # PIL works along the rows first, and what it keeps between the passes are 8-bit numbers too.
        return bicubic(bicubic(images, size=(images.shape[-2], size[1])).clamp(0, 1), size=size).clamp(0, 1)


def unit(embedding: Tensor) -> Tensor:
    """(B, E) of L2 norm 1 each, in float32 at least: a reward's differences are smaller than half precision resolves."""
    return F.normalize(embedding.to(torch.promote_types(embedding.dtype, torch.float32)), dim=-1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """(B,): the cosine of each row of unit vectors (B, E) with its own partner; never of all with all."""
    return (a * b).sum(-1)


def in_chunks(encode: Callable[[list[str]], Tensor], prompts: list[str]) -> Tensor:
    """One row per prompt, (P, ...), without a graph, a bounded number of prompts at once."""
    if not prompts:
        raise ValueError("no prompts to encode")
    with torch.no_grad():
        starts = range(0, len(prompts), PROMPTS_AT_ONCE)
        return torch.cat([encode(prompts[start : start + PROMPTS_AT_ONCE]) for start in starts])


def frozen(model: M, device: str | torch.device, dtype: str) -> M:
    """The model ready to score: on the device, without dropout, its weights without gradients."""
    return model.to(device, getattr(torch, dtype)).eval().requires_grad_(False)


def who(reward: str) -> str:
    """What messages call a reward; a model that an option names instead is called by the option, `--features tiny-clip`."""
    return reward if reward.startswith("--") else f"reward {reward}"


def check_files(folder: Path, reward: str, choices: Sequence[Sequence[str]], origin: str) -> None:
    """Raises UserError unless `folder` holds at least one file of each choice; `origin` says whose files they are."""
    missing = [" or ".join(names) for names in choices if not any((folder / name).is_file() for name in names)]
    if missing:
        found = "has no" if folder.is_dir() else "does not exist and should hold"
        raise UserError(f"{who(reward)}: {folder} {found} {', '.join(missing)}; put the files of {origin} there")


def read_weights(file: Path, reward: str) -> dict[str, Any]:
    """What a .pt or .pth file holds, tensors and plain containers only. Raises UserError if it cannot be read so."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds, for files cut short, pickles of code, other formats
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{who(reward)}: {file} is not a file of PyTorch weights: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"{who(reward)}: {file} holds a {type(content).__name__}; a dict of tensors is accepted")
    return content


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], file: Path, reward: str) -> None:
    """Fill the model. Raises UserError, naming the file, for weights that are missing, too many or of another shape."""
    own = model.state_dict()
    wrong = [f"no {name}" for name in own if name not in weights]
    wrong += [f"{name}, which it does not have" for name in weights if name not in own]
    for name in own.keys() & weights.keys():
        if own[name].shape != weights[name].shape:
            wrong.append(f"{name} of shape {tuple(weights[name].shape)}, not {tuple(own[name].shape)}")
    if wrong:
        more = f" and {len(wrong) - 3} more differences" if len(wrong) > 3 else ""
        raise UserError(f"{who(reward)}: {file} does not fit the model: {'; '.join(wrong[:3])}{more}")
    model.load_state_dict(dict(weights))
