"""Prompt embeddings on a disk or in an object store: encoded once, read by every step that needs them.

A store is a folder for one kind of encoding (`encoding_fingerprint`) inside the folder that the user names. It has shards:
`prompts-NNNNNN-xxxxxxxx.safetensors` with the tensors of a condition, one row per prompt. A shard appears whole or not at all,
and is never changed. The metadata in its header has the prompts' SHA-256 and a checksum per row.

Axes: N prompts of a shard.
"""

import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ortho_core.errors import UserError
from ortho_core.framing.frame import Frame, Size
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.precision import network_dtype
from ortho_core.generators.prompt_keys import KEY_BYTES, number_of, prompt_key
from ortho_core.storage.open import open_store
from ortho_core.storage.store import Store, one_line
from ortho_core.storage.tensors import DTYPE_OF, TYPES, TensorFile, raw_bytes, tensor_bytes

#: Prompts that are encoded together, in every process. Smaller batches are filled up.
ENCODED_AT_ONCE = 8
#: The value of `format` in the metadata.
PROMPTS_FORMAT = "ortho-prompts-1"
PROMPT_SHARD = re.compile(r"prompts-(\d{6,})-[0-9a-f]{8}\.safetensors")
#: The tensor of a condition that belongs to an image's frame and not to the prompt. It is not stored.
FRAME_IDS = "time_ids"
#: Headers, and rows, that are read in parallel, because of the latency of object stores.
PROMPTS_READ_AT_ONCE = 16
ENCODED_AGAIN = "delete it, and the same command encodes its prompts again"

#: One prompt's tensors by name, without a batch axis.
Row = Mapping[str, Tensor]


def encoding_fingerprint(
    model: ModelFolder, dtype: torch.dtype, device: str | torch.device, batch_size: int = ENCODED_AT_ONCE
) -> str:
    """SHA-256 (16 hex digits) of what decides the numbers: the text encoders' files, the dtype and kind of device on which they
    compute, and the size of the batches, because batches of different sizes round differently.
    """
    content = [PROMPTS_FORMAT, model.text_fingerprint, str(dtype), torch.device(device).type, batch_size]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


class DamagedShard(UserError):
    """A shard that is cut short, or no shard. Its prompts must be encoded again."""


@dataclass(frozen=True, eq=False)
class _Shard:
    """A shard without its embeddings."""

    name: str
    file: TensorFile
    #: (N, 2) uint64: the first 128 bits of each prompt's key.
    keys: np.ndarray
    #: (N,) uint32: CRC-32 of each row's bytes, tensor after tensor by name.
    checks: np.ndarray
    #: The dtype of `FRAME_IDS`; None if the condition has none.
    frame_dtype: torch.dtype | None


class PromptStore:
    """The embeddings of one kind of encoding. The list of its prompts is read when first needed; it is not pickled.

    It takes 36 bytes of memory per prompt.
    """

    def __init__(self, location: str | Path, fingerprint: str) -> None:
        """`location` is the folder that the user names. Raises UserError if no installed library opens such a URL."""
        self.fingerprint = fingerprint
        self.folder: Store = open_store(location).child(fingerprint)
        self._shards: list[_Shard] | None = None
        #: The first 64 bits of all keys, sorted, and for each the number of its shard and its row there.
        self._numbers, self._places = np.zeros(0, np.uint64), np.zeros((0, 2), np.uint32)

    @staticmethod
    def of(location: str | Path, model: ModelFolder, dtype: str, device: str | torch.device) -> "PromptStore":
        """The store for a model that is loaded in `dtype` (also `auto`) onto `device`."""
        computes_in = network_dtype(dtype, device, model.half)
        return PromptStore(location, encoding_fingerprint(model, computes_in, device))

    def __getstate__(self) -> dict[str, object]:
        return {
            **self.__dict__,
            "_shards": None,
            "_numbers": np.zeros(0, np.uint64),
            "_places": np.zeros((0, 2), np.uint32),
        }

    def names(self) -> list[str]:
        """The names of the shards."""
        try:
            return [name for name in self.folder.names() if PROMPT_SHARD.fullmatch(name)]
        except OSError as error:
            raise UserError(f"cannot read {self.folder.location}: {one_line(error)}") from error

    def open(self) -> None:
        """Read the list of prompts again. Raises UserError, in one line, for a shard that cannot be used."""
        names = self.names()
        with ThreadPoolExecutor(PROMPTS_READ_AT_ONCE) as pool:
            self._take(list(pool.map(self._read_shard, names)))

    def open_sound(self) -> list[str]:
        """`open`, but removes shards that are damaged, for the caller to encode their prompts again.

        Returns a line about each. Raises UserError for a shard of another encoding.
        """

        def read(name: str) -> "_Shard | DamagedShard":
            try:
                return self._read_shard(name)
            except DamagedShard as fault:
                return fault

        names = self.names()
        with ThreadPoolExecutor(PROMPTS_READ_AT_ONCE) as pool:
            found = list(pool.map(read, names))
        for name, shard in zip(names, found, strict=True):
            if isinstance(shard, DamagedShard):
                self.folder.remove(name)
        self._take([shard for shard in found if isinstance(shard, _Shard)])
        return [str(fault).removesuffix(f": {ENCODED_AGAIN}") for fault in found if isinstance(fault, DamagedShard)]

    def _take(self, shards: list[_Shard]) -> None:
        self._shards = shards
        numbers = np.concatenate([np.zeros(0, np.uint64), *(shard.keys[:, 0] for shard in shards)])
        counts = [len(shard.keys) for shard in shards]
        which = np.repeat(np.arange(len(shards), dtype=np.uint32), counts)
        rows = np.concatenate([np.zeros(0, np.uint32), *(np.arange(count, dtype=np.uint32) for count in counts)])
        order = np.argsort(numbers, kind="stable")
        self._numbers, self._places = numbers[order], np.stack([which, rows], 1)[order]

    @property
    def numbers(self) -> np.ndarray:
        """The first 64 bits of the key of each stored prompt, sorted, uint64."""
        self._opened()
        return self._numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def _opened(self) -> list[_Shard]:
        if self._shards is None:
            self.open()
        assert self._shards is not None
        return self._shards

    def row_bytes(self) -> int | None:
        """Bytes of a stored row; None if there is none."""
        shards = self._opened()
        return sum(each.row_bytes for each in shards[0].file.tensors.values()) if shards else None

    def rows(self, prompts: Sequence[str], size: Size) -> dict[str, dict[str, Tensor]]:
        """The tensors of each prompt that is stored, in host memory, exactly as they were encoded.

        The frame that the network is told is the plain one of images of `size` (Y, X), as `encode_prompts` gives it. Raises
        UserError, naming the file, if a shard is damaged or gone.
        """
        shards, places = self._opened(), {prompt: self._place(prompt) for prompt in prompts}
        stored = {prompt: place for prompt, place in places.items() if place is not None}
        if not stored:
            return {}
        read = [(shards[number], row, size) for number, row in stored.values()]
        if len(read) == 1:
            return dict(zip(stored, [self._row(*read[0])], strict=True))
        with ThreadPoolExecutor(min(PROMPTS_READ_AT_ONCE, len(read))) as pool:
            return dict(zip(stored, pool.map(lambda each: self._row(*each), read), strict=True))

    def _place(self, prompt: str) -> tuple[int, int] | None:
        """The shard and the row of a prompt; None if it is not stored."""
        shards, key = self._opened(), prompt_key(prompt)
        first, second = number_of(key), number_of(key[8:])
        at = int(np.searchsorted(self._numbers, np.uint64(first)))
        while at < len(self._numbers) and int(self._numbers[at]) == first:
            shard, row = map(int, self._places[at])
            if int(shards[shard].keys[row, 1]) == second:
                return shard, row
            at += 1
        return None

    def _row(self, shard: _Shard, row: int, size: Size) -> dict[str, Tensor]:
        where, check, tensors = f"{self.folder.location}/{shard.name}", 0, {}
        for name, stacked in sorted(shard.file.tensors.items()):
            try:
                content = stacked.read(self.folder, shard.name, row)
            except OSError as error:
                raise UserError(f"{where} cannot be read: {one_line(error)}; {ENCODED_AGAIN}") from error
            check = zlib.crc32(content, check)
            tensors[name] = content
        if check != int(shard.checks[row]):
            raise UserError(f"{where} is damaged (row {row} has another checksum): {ENCODED_AGAIN}")
        read = {name: shard.file.tensors[name].tensor(content) for name, content in tensors.items()}
        if shard.frame_dtype is not None:
            read[FRAME_IDS] = torch.tensor(Frame.plain(size), dtype=shard.frame_dtype)
        return read

    def _read_shard(self, name: str) -> _Shard:
        """A shard's header, checked. Raises DamagedShard, or UserError for a shard of another encoding."""
        where = f"{self.folder.location}/{name}"
        try:
            file = TensorFile.read(self.folder, name)
            if (size := self.folder.size(name)) != file.size:
                raise ValueError(f"it has {size:,} bytes, not {file.size:,}")
            about = file.metadata
            if about.get("format") != PROMPTS_FORMAT:
                raise ValueError("it is not a shard of prompt embeddings")
            described = {key: (each.dtype, (each.rows, *each.shape)) for key, each in file.tensors.items()}
            if about.get("check") != _check_of(about, described):
                raise ValueError("its header has another checksum")
            keys = np.frombuffer(bytes.fromhex(about.get("keys", "")), ">u8").reshape(-1, KEY_BYTES // 8)
            checks = np.frombuffer(bytes.fromhex(about.get("checks", "")), ">u4").astype(np.uint32)
            frame = about.get("frame_ids", "")
            if frame not in ("", *DTYPE_OF) or {len(keys), len(checks)} != {
                each.rows for each in file.tensors.values()
            }:
                raise ValueError("its header does not fit its tensors")
        except OSError as error:
            raise UserError(f"{where} cannot be read: {one_line(error)}") from error
        except ValueError as error:
            raise DamagedShard(f"{where} is damaged ({one_line(error)}): {ENCODED_AGAIN}") from error
        if (other := about.get("encoding")) != self.fingerprint:
            raise UserError(f"{where} has the embeddings of another encoding ({other}): move it away")
        return _Shard(name, file, keys[:, :2].astype(np.uint64), checks, DTYPE_OF.get(frame))

    def name_of(self, number: int, prompts: Sequence[str]) -> str:
        """The name of the shard `number` with these prompts, in this order."""
        digest = hashlib.sha256(b"".join(map(prompt_key, prompts))).hexdigest()
        return f"prompts-{number:06d}-{digest[:8]}.safetensors"

    def next_number(self) -> int:
        """A number above those of all shards."""
        matches = (PROMPT_SHARD.fullmatch(name) for name in self.names())
        return max((int(match[1]) + 1 for match in matches if match), default=0)

    def publish(self, name: str, rows: Mapping[str, Row]) -> bool:
        """Write the rows of some prompts as a shard. Returns False, and drops them, if a shard has this name already.

        Raises OSError.
        """
        first = next(iter(rows.values()))
        names = sorted(tensor for tensor in first if tensor != FRAME_IDS)
        checks = []
        for row in rows.values():
            check = 0
            for each in names:
                check = zlib.crc32(raw_bytes(row[each]), check)
            checks.append(check)
        about = {
            "format": PROMPTS_FORMAT,
            "encoding": self.fingerprint,
            "keys": b"".join(map(prompt_key, rows)).hex(),
            "checks": np.array(checks, ">u4").tobytes().hex(),
            "frame_ids": TYPES[first[FRAME_IDS].dtype] if FRAME_IDS in first else "",
        }
        stacked = {each: torch.stack([row[each].cpu() for row in rows.values()]) for each in names}
        about["check"] = _check_of(about, {each: (tensor.dtype, tensor.shape) for each, tensor in stacked.items()})
        return self.folder.create(name, tensor_bytes(stacked, about))


def _check_of(about: Mapping[str, str], tensors: Mapping[str, tuple[torch.dtype, Sequence[int]]]) -> str:
    """CRC-32 of what a header says, 8 hexadecimal digits: the other metadata, and the tensors' names, types and shapes."""
    described = [[name, TYPES[dtype], *shape] for name, (dtype, shape) in sorted(tensors.items())]
    content = [sorted(item for item in about.items() if item[0] != "check"), described]
    return f"{zlib.crc32(json.dumps(content).encode()):08x}"
