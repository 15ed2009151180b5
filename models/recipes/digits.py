"""Real handwritten digits in colour, with captions: the data of the models and examples in the repository.

Axes: B images, H = W = 32 pixels. Strokes are float32 in [0, 1] (1 = ink), images RGB float32 in [0, 1].
"""

import struct
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 32
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
INKS = {
    "red": (0.90, 0.10, 0.10),
    "green": (0.10, 0.70, 0.15),
    "blue": (0.15, 0.25, 0.95),
    "yellow": (0.98, 0.90, 0.10),
    "purple": (0.60, 0.10, 0.75),
    "orange": (1.00, 0.55, 0.05),
    "white": (1.00, 1.00, 1.00),
}
PAPERS = {"black": (0.00, 0.00, 0.00), "gray": (0.50, 0.50, 0.50), "white": (1.00, 1.00, 1.00)}
#: Every (ink, paper) that can be told apart.
COLOURS = tuple((ink, paper) for ink in INKS for paper in PAPERS if ink != paper)


def caption(digit: int, ink: str, paper: str) -> str:
    """The prompt of one image, e.g. `a green handwritten seven on a black background`."""
    article = "an" if ink[0] in "aeiou" else "a"
    return f"{article} {ink} handwritten {DIGITS[digit]} on a {paper} background"


def read_idx(path: Path) -> Tensor:
    """Read one unsigned-byte IDX file (LeCun et al., the MNIST format) as a uint8 tensor of the shape it states."""
    raw = path.read_bytes()
    zero, kind, rank = struct.unpack(">HBB", raw[:4])
    if zero != 0 or kind != 8:
        raise ValueError(f"{path}: not an IDX file of unsigned bytes (magic {raw[:4].hex()})")
    shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    return torch.frombuffer(bytearray(raw[4 + 4 * rank :]), dtype=torch.uint8).reshape(shape)


def read_mnist(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Strokes (B, 1, 32, 32) and digits (B,) int64 of `split` ("train" or "t10k"), padded from 28 to 32 pixels."""
    strokes = read_idx(folder / f"{split}-images-idx3-ubyte").float().div(255).unsqueeze(1)
    digits = read_idx(folder / f"{split}-labels-idx1-ubyte").long()
    return F.pad(strokes, (2, 2, 2, 2)), digits


def restyle(strokes: Tensor, *, slant: Tensor, bold: Tensor) -> Tensor:
    """Shear images (B, c, H, W) by `slant` (B,) (pixels per pixel) and blend in a 3×3 dilation by `bold` (B,) in [0, 1]."""
    theta = torch.zeros(len(strokes), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1
    theta[:, 0, 1] = slant
    grid = F.affine_grid(theta, list(strokes.shape), align_corners=False)
    # Pixels outside are those at the edge: for digits, the paper.
    strokes = F.grid_sample(strokes, grid, padding_mode="border", align_corners=False)
    return torch.lerp(strokes, F.max_pool2d(strokes, 3, stride=1, padding=1), bold.view(-1, 1, 1, 1))


def lean(strokes: Tensor, rng: torch.Generator) -> Tensor:
    """The handwriting of the examples, on which no model here was trained: bold, and each image slanted differently."""
    slant = 0.35 + 0.1 * torch.rand(len(strokes), generator=rng)
    return restyle(strokes, slant=slant, bold=torch.ones(len(strokes)))


def paint(strokes: Tensor, colours: list[tuple[str, str]]) -> Tensor:
    """Colour strokes (B, 1, H, W) with one (ink, paper) each: images (B, 3, H, W)."""
    ink = torch.tensor([INKS[i] for i, _ in colours]).view(-1, 3, 1, 1)
    paper = torch.tensor([PAPERS[p] for _, p in colours]).view(-1, 3, 1, 1)
    return torch.lerp(paper.expand(-1, 3, *strokes.shape[2:]), ink.expand(-1, 3, *strokes.shape[2:]), strokes)


class ColouredDigits:
    """An endless stream of (images, captions, digits, colours) drawn from one MNIST split with a seeded generator."""

    def __init__(self, folder: Path, split: str, *, seed: int, restyled: bool = False) -> None:
        self.strokes, self.digits = read_mnist(folder, split)
        self.rng = torch.Generator().manual_seed(seed)
        self.restyled = restyled

    def draw(self, batch: int, pairs: int = len(COLOURS)) -> tuple[Tensor, list[str], Tensor, list[tuple[str, str]]]:
        """Images (B, 3, H, W), their captions, digits (B,) and colours, the last among the first `pairs` of COLOURS."""
        index = torch.randint(len(self.strokes), (batch,), generator=self.rng)
        strokes, digits = self.strokes[index], self.digits[index]
        if self.restyled:
            slant = torch.rand(batch, generator=self.rng) - 0.5
            bold = (torch.rand(batch, generator=self.rng) * 2 - 0.7).clamp(0, 1)
            strokes = restyle(strokes, slant=slant, bold=bold)
        picks = torch.randint(pairs, (batch,), generator=self.rng)
        colours = [COLOURS[i] for i in picks]
        captions = [caption(int(d), *c) for d, c in zip(digits, colours, strict=True)]
        return paint(strokes, colours), captions, digits, colours
