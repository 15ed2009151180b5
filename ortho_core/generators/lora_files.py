"""Files of LoRAs that are added to a model: found, recognised and checked without loading any weights.

Their tensors are named as diffusers writes them (`unet.….lora_A.weight`, `….lora.down.weight`) or as kohya's scripts do
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

#: The weights of a LoRA folder, named as diffusers looks for them.
LORA_WEIGHTS = "pytorch_lora_weights.safetensors"
SUFFIX = ".safetensors"
#: Names of the tensors that go into a product's right factor, of which each layer has one, and of the others of a plain LoRA.
DOWN = re.compile(r"(lora_down|lora_A|lora\.down|lora_linear_layer\.down)(\.default)?\.weight$")
OTHERS = re.compile(r"((lora_up|lora_B|lora\.up|lora_linear_layer\.up)(\.default)?\.weight|alpha)$")
#: What names of tensors of other kinds of adapters have in them.
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
#: What names of layers of text encoders begin with.
TEXT = ("text_encoder", "lora_te")


@dataclass(frozen=True)
class LoraFile:
    """A file of plain low-rank adapters, and how much of them is added."""

    path: Path
    weight: float
    #: How many layers it adapts.
    layers: int
    #: Whether text encoders are among them.
    on_text: bool

    #: What messages call it.
    option: str = "--lora "

    @property
    def said(self) -> str:
        return f"{self.option}{self.path}"

    @staticmethod
    def open(added: AddedLora) -> "LoraFile":
        """Find and recognise what `--lora` names. Raises UserError, in one line, for what is no plain LoRA."""
        file = _file_of(added.file).absolute()
        names = shapes_of(file)
        for mark, kind in FOREIGN.items():
            if any(mark in name for name in names):
                raise UserError(
                    f"--lora {file} holds {kind}; accepted: plain LoRA, with a down and an up matrix for each layer"
                )
        down = [name for name in names if DOWN.search(name)]
        if not down:
            first = next(iter(names), "nothing")
            raise UserError(
                f"--lora {file} holds no LoRA: it has {first}, ...; accepted: files of diffusers and kohya format"
            )
        if other := next((name for name in names if not DOWN.search(name) and not OTHERS.search(name)), None):
            raise UserError(f"--lora {file} holds {other}, which is no part of a plain LoRA")
        return LoraFile(file, added.weight, len(down), any(name.startswith(TEXT) for name in down))

    @cached_property
    def content(self) -> str:
        """SHA-256 of the file, as it was when first asked for. Raises UserError for a file that cannot be read."""
        try:
            return content_hash(self.path)
        except OSError as error:
            raise UserError(f"{self.path} cannot be read: {error.strerror}") from error

    @property
    def fingerprint(self) -> str:
        """What the file adds. Raises UserError for a file that cannot be read."""
        return self.adding(self.content)

    def adding(self, content: str) -> str:
        """What a file with this SHA-256 adds, at the weight of this one."""
        return f"{content}\0{self.weight!r}"


def _file_of(place: Path) -> Path:
    if place.is_dir():
        if (place / LORA_WEIGHTS).is_file():
            return place / LORA_WEIGHTS
        files = sorted(place.glob(f"*{SUFFIX}"))
        if len(files) == 1:
            return files[0]
        there = ", ".join(file.name for file in files[:4])
        raise UserError(
            f"--lora {place} holds {f'several files ({there})' if files else f'no {SUFFIX}'}; give the LoRA's file"
        )
    if not place.exists():
        raise UserError(f"--lora {place} does not exist")
    if place.suffix != SUFFIX:
        raise UserError(f"--lora {place} is a {place.suffix or 'plain'} file; accepted: {SUFFIX}, or a folder with one")
    return place
