"""Find, recognise and check LoRA files that are added to a model (`--lora`), without loading weights.

Their tensors have diffusers' names (`unet.….lora_A.weight`, `….lora.down.weight`) or those of kohya's scripts
(`lora_unet_….lora_down.weight`, with a tensor `….alpha` each).
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ortho_core.errors import UserError
from ortho_core.generators.lora_config import AddedLora
from ortho_core.generators.part_files import shapes_of
from ortho_core.storage.hashes import content_hash

#: The weights of a LoRA folder; the name that diffusers looks for.
LORA_WEIGHTS = "pytorch_lora_weights.safetensors"
#: The kohya file in the folder of a UNet's LoRA, beside the file that diffusers reads.
KOHYA_WEIGHTS = "lora_kohya.safetensors"
#: The other programs that read each.
READERS = {KOHYA_WEIGHTS: "ComfyUI, Forge and A1111", LORA_WEIGHTS: "ComfyUI"}
SUFFIX = ".safetensors"
#: Names of the A (down) tensors, one per layer; then names of the other tensors of a plain LoRA.
DOWN = re.compile(r"(lora_down|lora_A|lora\.down|lora_linear_layer\.down)(\.default)?\.weight$")
OTHERS = re.compile(r"((lora_up|lora_B|lora\.up|lora_linear_layer\.up)(\.default)?\.weight|alpha)$")
#: Parts of tensor names that identify other kinds of adapters.
FOREIGN = {
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "lora_mid": "LoCon with a core",
    "oft_": "OFT",
    "boft_": "BOFT",
    "lora_controlnet": "a control LoRA",
}
#: Prefixes of text encoder layers.
TEXT = ("text_encoder", "lora_te")


@dataclass(frozen=True)
class LoraFile:
    """A file of plain low-rank adapters, and the weight with which they are added."""

    path: Path
    weight: float
    #: Number of layers that it adapts.
    layers: int
    #: Whether it adapts text encoders.
    on_text: bool

    #: Prefix of its name in messages.
    option: str = "--lora "

    @property
    def said(self) -> str:
        return f"{self.option}{self.path}"

    @staticmethod
    def open(added: AddedLora) -> "LoraFile":
        """Find and check the file that `--lora` names. Raises UserError, in one line, if it is not a plain LoRA."""
        file = _file_of(added.file).absolute()
        names = shapes_of(file)
        for mark, kind in FOREIGN.items():
            if any(mark in name for name in names):
                raise UserError(
                    f"--lora {file} contains {kind}; accepted: plain LoRA, with a down and an up matrix for each layer"
                )
        down = [name for name in names if DOWN.search(name)]
        if not down:
            first = next(iter(names), "nothing")
            raise UserError(
                f"--lora {file} contains no LoRA: it has {first}, ...; accepted: files in diffusers or kohya format"
            )
        if other := next((name for name in names if not DOWN.search(name) and not OTHERS.search(name)), None):
            raise UserError(f"--lora {file} contains {other}, which is not part of a plain LoRA")
        return LoraFile(file, added.weight, len(down), any(name.startswith(TEXT) for name in down))

    @cached_property
    def content(self) -> str:
        """SHA-256 of the file at the first access. Raises UserError if it cannot be read."""
        try:
            return content_hash(self.path)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}") from error

    @property
    def fingerprint(self) -> str:
        """Identifies the addition: the file's content and its weight. Raises UserError if the file cannot be read."""
        return self.adding(self.content)

    def adding(self, content: str) -> str:
        """The `fingerprint` for a file with this SHA-256 and the same weight."""
        return f"{content}\0{self.weight!r}"


def _file_of(place: Path) -> Path:
    if place.is_dir():
        if (place / LORA_WEIGHTS).is_file():
            return place / LORA_WEIGHTS
        files = sorted(place.glob(f"*{SUFFIX}"))
        if len(files) == 1:
            return files[0]
        some = ", ".join(file.name for file in files[:4])
        raise UserError(
            f"--lora {place} contains {f'several files ({some})' if files else f'no {SUFFIX}'}; give the LoRA's file"
        )
    if not place.exists():
        raise UserError(f"--lora {place} does not exist")
    if place.suffix != SUFFIX:
        raise UserError(f"--lora {place} is a {place.suffix or 'plain'} file; accepted: {SUFFIX}, or a folder with one")
    return place
