"""The reference implementation's folder of assigned noise: written from our records, and validated when read.

    manifest.jsonl                       one JSON object per sample
    samples/NAME/best_input_noise.pt     torch.save of the noise, (1, C, H, W) float32
    samples/NAME/meta.json               what is known of the sample

The reference stores the start of its scheduler, x_T = s·ε; our records store ε. For SDXL Turbo s is 14.6, so one must not be
used in place of the other. Written samples state their s. When a sample is read, the s of the caller counts first, then that
of the sample, then the model's. Axes: C × H × W the noise map.
"""

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

import torch
from jaxtyping import Float
from torch import Tensor

from ortho_core.errors import BadRow, UserError
from ortho_core.pairs.formats.json_lines import lines_of
from ortho_core.pairs.rows import Shard
from ortho_core.storage.local import LocalStore
from ortho_core.storage.store import OutsideRoot
from ortho_core.text.parsing import NotParsedError, json_object, parse_json
from ortho_core.text.plain_text import one_line

MANIFEST, SAMPLES, NOISE, META = "manifest.jsonl", "samples", "best_input_noise.pt", "meta.json"
#: Columns of a record that meta.json repeats.
COLUMNS = (
    *("sample_id", "prompt", "image", "noise_seed", "patch_size", "regions", "evaluations"),
    *("initial_loss", "loss", "latent_loss", "pixel_l1", "drift", "prior", "model_fingerprint", "config_fingerprint"),
)
#: Largest number of characters in a sample's folder name; file systems allow 255 bytes.
LONGEST = 200
#: Largest size in bytes of an unpacked noise file, and of a meta.json. A noise of SDXL's size has 256 KiB.
MAX_NOISE, MAX_META = 1 << 26, 1 << 24
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Noise without a stated scale is accepted if its root mean square is within this factor of the model's noise scale.
PLAUSIBLE = 3.0

#: The names of each number of a record in a manifest entry or meta.json: ours, then the reference's.
NUMBERS = {
    "initial_loss": ("initial_loss",),
    "loss": ("loss", "stats.best_loss", "stats.loss"),
    "latent_loss": ("latent_loss", "stats.best_latent_loss", "stats.latent_loss"),
    "pixel_l1": ("pixel_l1", "stats.best_pixel_l1", "stats.pixel_l1"),
    "drift": ("drift",),
    "prior": ("prior",),
}
#: The names of an image in the pair set, and of its copy in the samples folder.
IMAGE_FIELDS = ("image", "source_rel_image_path", "source.image_rel")
COPIES = ("target_image_path", "artifacts.reference_image", "image")


def sample_folder(sample_id: str) -> str:
    """A unique folder name for any text: percent-encoded; a long one is cut and gets part of its SHA-256."""
    name = quote(sample_id, safe="")
    if name.startswith("."):  # for ".", "..", and hidden names; `quote` itself never makes a %2E
        name = "%2E" + name[1:]
    if len(name) < LONGEST:
        return name
    # Exactly LONGEST characters, which no name above has.
    return name[: LONGEST - 33] + "~" + hashlib.sha256(sample_id.encode()).hexdigest()[:32]


def write_sample(
    root: LocalStore, row: int, record: Mapping[str, Any], noise: Float[Tensor, "C H W"], scale: float
) -> bool:
    """Write the files of one sample, meta.json last; False if they already exist.

    `record` has COLUMNS; `noise` is ε, written as `scale`·ε. Raises UserError if the folder has the sample of another row.
    """
    name = f"{SAMPLES}/{sample_folder(record['sample_id'])}"
    if root.exists(f"{name}/{META}"):
        _check_same(root, name, row, record["sample_id"])
        if root.exists(f"{name}/{NOISE}"):
            return False
    root.child(name).sweep()
    buffer = io.BytesIO()
    torch.save((noise.double() * scale).float()[None].clone(), buffer)
    root.replace(f"{name}/{NOISE}", buffer.getvalue())
    meta = {c: _json_ready(record[c]) for c in COLUMNS} | {"row": row, "noise_scale": scale}
    root.replace(f"{name}/{META}", (json.dumps(meta, ensure_ascii=False, indent=1) + "\n").encode())
    return True


def _check_same(root: LocalStore, name: str, row: int, sample_id: str) -> None:
    try:
        meta = json_object(root.read(f"{name}/{META}"), META)
        existing = meta["row"], meta["sample_id"]
    except (OSError, NotParsedError, KeyError) as error:
        raise UserError(
            f"{root.location}/{name}/{META} was not written by an export: {one_line(error)}; choose another folder"
        ) from error
    if existing != (row, sample_id):
        raise UserError(
            f"{root.location}/{name} belongs to row {existing[0]} ({existing[1]!r}) and to row {row} ({sample_id!r}): every "
            "sample needs its own id and folder"
        )


def manifest_entry(root: LocalStore, record: Mapping[str, Any], image_root: str | None) -> dict[str, str]:
    """The manifest's line for a sample. It has paths relative to the folder, and absolute ones: the reference's trainer opens
    `best_input_noise_path` and `target_image_path` directly.
    """
    name, image = f"{SAMPLES}/{sample_folder(record['sample_id'])}", record["image"]
    return {
        "id": record["sample_id"],
        "sample_id": record["sample_id"],
        "prompt": record["prompt"],
        "image": image,
        "noise": f"{name}/{NOISE}",
        "meta": f"{name}/{META}",
        "best_input_noise_path": f"{root.location}/{name}/{NOISE}",
        "target_image_path": image if image_root is None else f"{image_root.rstrip('/')}/{image}",
    }


def _json_ready(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Sample:
    """One usable sample: ε as (C, H, W) float32, and the columns of its record that the folder has."""

    noise: Tensor
    columns: dict[str, Any]
    #: Possible paths of the image, the most likely first.
    images: tuple[str, ...]


def manifest_lines(root: LocalStore, shard: Shard) -> Iterator[tuple[int, bytes]]:
    """(row, line) of a shard of the manifest. Raises UserError if the manifest has changed."""
    read = 0
    for row, line in lines_of(root, shard):
        read += 1
        yield row, line
    if read < shard.rows:
        raise UserError(
            f"{root.location}/{MANIFEST} has changed since the run began: it ends at row {shard.first + read}"
        )


def parse_entry(line: bytes, row: int) -> tuple[dict[str, object], str]:
    """A manifest line as (entry, sample id). Raises BadRow."""
    entry = _parse_object(line, f"row {row}")
    sample_id = _find([entry], "id", "sample_id", "name")
    if isinstance(sample_id, bool) or not isinstance(sample_id, str | int) or sample_id == "":
        raise BadRow(
            "missing-id",
            f"row {row}: id is {repr(sample_id)[:60]}; accepted: a text or number as id, sample_id or name",
        )
    return entry, _text(str(sample_id), row, "the id")


class SampleReader:
    """Reads the samples of one folder. It opens no file outside the folder and runs no code from it."""

    def __init__(
        self, root: LocalStore, latent_shape: tuple[int, int, int], model_scale: float, stated_scale: float | None
    ) -> None:
        """`stated_scale`: s of every noise, which overrides the folder's; `model_scale` is used if neither states one."""
        self.root, self.latent_shape = root, latent_shape
        self.model_scale, self.stated_scale = model_scale, stated_scale

    def read(self, entry: Mapping[str, object], sample_id: str, row: int, *, copies: bool) -> Sample:
        """Read and validate a sample; with `copies` its images are files of this folder. Raises BadRow."""
        noise_name = self._noise_name(entry, sample_id, row)
        meta = self._meta(entry, noise_name, row)
        sources = [entry, meta]
        prompt = _find(sources, "prompt")
        if not isinstance(prompt, str) or not prompt.strip():
            raise BadRow(
                "missing-prompt",
                f"row {row}: prompt is {repr(prompt)[:60]}; accepted: a text in the manifest or {META}",
            )
        images = [
            value for name in (COPIES if copies else IMAGE_FIELDS) if isinstance(value := _find(sources, name), str)
        ]
        if not images:
            raise BadRow(
                "missing-image", f"row {row} names no image; accepted: {', '.join(COPIES if copies else IMAGE_FIELDS)}"
            )
        scale = self.stated_scale or max(0.0, _number(_find([meta, entry], "noise_scale")) or 0.0)
        noise = self._load(noise_name, row, scale)
        columns = _columns(sources, scale or self.model_scale)
        columns |= {"sample_id": sample_id, "prompt": _text(prompt, row, "the prompt")}
        return Sample(noise, columns, tuple(_text(image, row, "the image's name") for image in images))

    def inside(self, name: str) -> str:
        """A path from the folder's files, relative to the folder. Raises OutsideRoot or FileNotFoundError.

        The reference writes absolute paths. If the folder was moved, such a path points outside. Its end, `samples/NAME/FILE`, is
        then looked up in this folder. Nothing outside the folder is read.
        """
        try:
            return self.root.contains(name)
        except OutsideRoot:
            parts = PurePosixPath(name).parts
            if parts[0] != "/" or parts[-3:-2] != (SAMPLES,) or ".." in parts:
                raise
            here = self.root.contains("/".join(parts[-3:]))
            if not self.root.exists(here):
                raise
            return here

    def _noise_name(self, entry: Mapping[str, object], sample_id: str, row: int) -> str:
        stated = _find(
            [entry], "noise", "best_input_noise", "noise_path", "best_input_noise_path", "artifacts.best_input_noise"
        )
        names = (
            [stated]
            if stated is not None
            else [f"{SAMPLES}/{n}/{NOISE}" for n in (sample_folder(sample_id), sample_id)]
        )
        for name in names:
            if not isinstance(name, str):
                raise BadRow("missing-noise", f"row {row}: the noise is {repr(name)[:60]}, not a path")
            if path := self._existing(name, row, "noise"):
                return path
        raise BadRow(
            "missing-noise", f"row {row}: noise {str(names[0])[:200]!r} does not exist in {self.root.location}"
        )

    def _existing(self, name: str, row: int, what: str) -> str | None:
        """The path if it is a file of the folder, None if there is none. Raises BadRow for a path outside the folder."""
        try:
            path = self.inside(name)
            return path if self.root.exists(path) else None
        except OutsideRoot:
            message = f"row {row}: {what} {name[:200]!r} lies outside {self.root.location}; accepted: a file in it"
            raise BadRow("outside-root", message) from None
        except OSError:  # no such file, or a name that no file can have
            return None

    def _meta(self, entry: Mapping[str, object], noise_name: str, row: int) -> dict[str, object]:
        stated = entry.get("meta")
        name = stated if isinstance(stated, str) else f"{PurePosixPath(noise_name).parent}/{META}"
        file = self._existing(name, row, "meta")
        if file is None:
            return {}
        if self.root.size(file) > MAX_META:
            raise BadRow("too-large", f"row {row}: {file} has {self.root.size(file)} bytes; accepted: {MAX_META}")
        try:
            return _parse_object(self.root.read(file), f"row {row}: {file}")
        except OSError as error:
            raise BadRow("unreadable-meta", f"row {row}: {file} cannot be read: {error.strerror}") from error

    def _load(self, name: str, row: int, scale: float) -> Float[Tensor, "C H W"]:
        """ε, from a file of `scale`·ε. A scale of 0 is unknown: then the model's is assumed if plausible. Raises BadRow."""
        who = f"row {row}: {name[:200]}"
        noise = self._tensor(_load_tensors(self.root, name, who), who)
        if not bool(noise.isfinite().all()):
            raise BadRow("non-finite-noise", f"{who} holds numbers that are not finite")
        noise = (noise.double() / (scale or self.model_scale)).float()
        size = float(noise.double().square().mean().sqrt())
        if not math.isfinite(size):
            raise BadRow(
                "non-finite-noise", f"{who} is not finite after division by scale {scale or self.model_scale:g}"
            )
        if not scale and not 1 / PLAUSIBLE <= size <= PLAUSIBLE:
            raise BadRow(
                "wrong-scale",
                f"{who} has root mean square {size * self.model_scale:.3g}, but noise of this model has "
                f"{self.model_scale:.3g}; --noise-scale states the factor of the noise (1: unit noise)",
            )
        return noise

    def _tensor(self, content: object, who: str) -> Float[Tensor, "C H W"]:
        """The noise in the content of a file, as float32. Raises BadRow unless there is exactly one."""
        shapes = (self.latent_shape, (1, *self.latent_shape))
        if isinstance(content, dict):
            fitting = [v for v in content.values() if isinstance(v, Tensor) and tuple(v.shape) in shapes]
            if len(fitting) != 1:
                message = (
                    f"{who} holds a mapping with {len(fitting)} tensors of shape {self.latent_shape}; accepted: one"
                )
                raise BadRow("not-a-noise", message)
            content = fitting[0]
        if not isinstance(content, Tensor):
            raise BadRow(
                "not-a-noise", f"{who} holds a {type(content).__name__}; accepted: a tensor, or a dict with one"
            )
        if tuple(content.shape) not in shapes:
            raise BadRow("wrong-shape", f"{who} has shape {tuple(content.shape)}; accepted: {shapes[0]} or {shapes[1]}")
        if content.dtype not in DTYPES or content.layout != torch.strided or content.device.type != "cpu":
            kind = f"{content.dtype}, {content.layout}, on {content.device}"
            raise BadRow("wrong-dtype", f"{who} is {kind}; accepted: dense {', '.join(map(str, DTYPES))}")
        return content.detach().reshape(self.latent_shape).float()


def _load_tensors(root: LocalStore, name: str, who: str) -> object:
    """The content of a file, loaded by torch.load with only tensors and plain containers. Raises BadRow."""
    try:
        with root.open(name) as stream:
            size = root.size(name)
            if zipfile.is_zipfile(stream):  # its members may be compressed
                with zipfile.ZipFile(stream) as archive:
                    size = max(size, sum(member.file_size for member in archive.infolist()))
            if size > MAX_NOISE:
                raise BadRow("too-large", f"{who} has {size} bytes unpacked; accepted: {MAX_NOISE}")
            stream.seek(0)
            return torch.load(stream, map_location="cpu", weights_only=True)
    except BadRow:
        raise
    except Exception as error:  # a malformed file can raise any error in torch's reader
        reason = (str(error).splitlines() or [""])[0][:200]
        raise BadRow(
            "unreadable-noise", f"{who} is not a file of plain tensors: {type(error).__name__}: {reason}"
        ) from error


def _parse_object(text: bytes, who: str) -> dict[str, object]:
    try:
        content = parse_json(text)
    except NotParsedError as error:
        raise BadRow("not-json", f"{who} is not a JSON object in UTF-8: {error.why}") from error
    if not isinstance(content, dict):
        raise BadRow("not-json", f"{who} is a JSON {type(content).__name__}, not an object")
    return content


def _find(sources: Sequence[Mapping[str, object]], *names: str) -> object:
    """The value of the first name that is not null in a source; a dot in a name goes into an inner object."""
    for name in names:
        for source in sources:
            value: object = source
            for part in name.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value is not None:
                return value
    return None


def _number(value: object) -> float | None:
    """The value if it is a number that fits in float32, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 3e38 else None


def _integer(value: object, least: int, most: int) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most else None


def _columns(sources: Sequence[Mapping[str, object]], scale: float) -> dict[str, Any]:
    """The columns that do not depend on the noise. Unknown values are None, but noise_seed is 0 and patch_size 1."""
    columns: dict[str, Any] = {c: _number(_find(sources, *names)) for c, names in NUMBERS.items()}
    history = _find(sources, "stats.loss_history")
    history = history if isinstance(history, list) else []
    if columns["initial_loss"] is None and history:
        columns["initial_loss"] = _number(history[0])
    drift = _number(_find(sources, "stats.best_drift_reg", "stats.drift_reg"))
    if columns["drift"] is None and drift is not None:
        columns["drift"] = drift / scale**2  # the reference measures it in x_T
    evaluations = _integer(_find(sources, "evaluations"), 0, 2**31 - 1)
    columns["evaluations"] = (len(history) or None) if evaluations is None else evaluations
    columns["noise_seed"] = _integer(_find(sources, "noise_seed"), 0, 2**63 - 1) or 0
    columns["patch_size"] = _integer(_find(sources, "patch_size"), 1, 2**31 - 1) or 1
    for name in ("model_fingerprint", "config_fingerprint"):
        value = _find(sources, name)
        columns[name] = value if isinstance(value, str) and value.isascii() else None
    return columns


def _text(text: str, row: int, what: str) -> str:
    """`text`, if it is Unicode. Raises BadRow for half of a surrogate pair: it is valid JSON, but not text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRow("not-text", f"row {row}: {what} holds characters that are not Unicode text: {error}") from error
    return text
