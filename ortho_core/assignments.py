"""The assignment record: which noise belongs to which image, in Parquet, small and checked.

A record keeps the noise as its seed and skew parameters (m float32, 480 bytes at C = 4, p = 2) and a checksum of the noise
they rebuild; noise that is no rotation (regions 0), or is wanted at hand, is kept itself. A part file is complete in itself:
its schema metadata carries the rows that failed and the run's fingerprint.
"""

import io
import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from ortho_core.errors import UserError
from ortho_core.noise import seeded_normal
from ortho_core.storage import Store, open_store
from ortho_core.transform import block_dimension, rotate, skew_parameters

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("prompt", pa.string()),
        ("image", pa.string()),
        ("noise_seed", pa.int64()),
        ("patch_size", pa.int32()),
        ("regions", pa.int32()),
        ("skew", pa.list_(pa.float32())),
        ("noise_checksum", pa.float64()),
        ("initial_loss", pa.float32()),
        ("loss", pa.float32()),
        ("latent_loss", pa.float32()),
        ("pixel_l1", pa.float32()),
        ("drift", pa.float32()),
        ("prior", pa.float32()),
        ("evaluations", pa.int32()),
        ("model_fingerprint", pa.string()),
        ("config_fingerprint", pa.string()),
        ("target_latent", pa.list_(pa.float32())),
        ("noise", pa.list_(pa.float32())),
    ]
)
#: With the noise itself kept in half precision.
HALF_SCHEMA = SCHEMA.set(SCHEMA.get_field_index("noise"), pa.field("noise", pa.list_(pa.float16())))
#: Columns of rows that were searched for their rewards: each reward by name, before and after.
REWARD_FIELDS = [pa.field(name, pa.map_(pa.string(), pa.float32())) for name in ("initial_rewards", "rewards")]
#: Bump when the meaning of a plan or of the files it describes changes.
FORMAT = 3
#: Two machines' linear algebra agrees far better than this; another seed, skew or shape does not.
CHECKSUM_TOLERANCE = 1e-4
#: Parts of assignments that a reader keeps in memory.
CACHE_BYTES = 2 << 30
#: Rows that a mean of the noise is taken over: it is then uncertain by a sixty-fourth of one map's deviation.
MEAN_OF = 4096
#: Maps that are rebuilt together for it.
AT_ONCE = 256
#: Footers that are read side by side: what an object store's latency asks for.
FOOTERS_AT_ONCE = 16
PART = re.compile(r"part-(\d{6,})-([0-9a-z]+)(?:\.r(\d+))?\.parquet")


@dataclass(frozen=True)
class Failure:
    """A quarantined row and why."""

    sample_id: str
    row: int
    reason: str
    message: str


class Start(NamedTuple):
    """Where the search of a sample goes on: the seed of its base noise, and parameters (m,) around that noise."""

    seed: int
    parameters: Tensor


def rebuild_noise(
    seeds: Sequence[int],
    skew: Float[Tensor, "B ggm"],
    patch_size: int,
    latent_shape: tuple[int, int, int],
    regions: int = 1,
) -> Float[Tensor, "B C H W"]:
    """Qε from its record, computed in float64 and returned in float32, the same on every machine to rounding."""
    base = seeded_normal(list(seeds), latent_shape)
    return rotate(base.double(), skew.double(), patch_size, regions).float()


def noise_checksum(noise: Float[Tensor, "B C H W"]) -> Float[np.ndarray, " B"]:
    """⟨noise, w⟩/√n with w a fixed standard normal vector: one number that any change of the noise moves, float64.

    A number and not a hash, so that the last bit of another machine's matrix product is not taken for damage; damaged
    bytes are caught by the page checksums of the Parquet file.
    """
    flat = noise.flatten(1).double().numpy()
    weights = seeded_normal([0], (flat.shape[1],))[0].double().numpy()
    # Not a matrix product: that would round differently in other batches.
    return np.asarray((flat * weights).sum(1) / np.sqrt(flat.shape[1]), dtype=np.float64)


def encode_part(
    rows: list[dict[str, Any]], failures: list[Failure], about: dict[str, Any], store: str, rewards: bool = False
) -> bytes:
    """One part file. `about` goes into the metadata; `store` "noise" keeps the noise in half precision; with `rewards`
    rows have the columns of `REWARD_FIELDS` too.
    """
    schema = HALF_SCHEMA if store == "noise" else SCHEMA
    for column in REWARD_FIELDS if rewards else ():
        schema = schema.append(column)
    return encode_rows(rows, failures, about, schema)


def encode_rows(rows: list[dict[str, Any]], failures: list[Failure], about: dict[str, Any], schema: pa.Schema) -> bytes:
    """A part file of rows of any kind; of a row, what the schema names is kept."""
    metadata = {"ortho": json.dumps({**about, "failures": [vars(f) for f in failures]})}
    table = pa.Table.from_pylist(rows, schema=schema).replace_schema_metadata(metadata)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def read_about(folder: Store, name: str) -> dict[str, Any]:
    """What `encode_part` put into the metadata, and the number of `rows`; reads the footer only. Raises UserError."""
    try:
        with folder.open(name) as stream:
            footer = pq.read_metadata(stream)
        about: dict[str, Any] = json.loads(footer.metadata[b"ortho"])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder.location}/{name} is not a readable assignment part: {error!r}") from error
    return {**about, "rows": footer.num_rows}


def read_part(folder: Store, name: str, columns: list[str] | None = None, verb: str = "assign") -> pa.Table:
    """All rows of a part file, every page against its checksum. Raises UserError if it is damaged; `verb` made it."""
    try:
        with folder.open(name) as stream:
            return pq.ParquetFile(stream, page_checksum_verification=True).read(columns)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{folder.location}/{name} is damaged: {error}; run the same `ortho {verb}` again, it makes the part anew"
        ) from error


def read_abouts(folder: Store, names: Sequence[str]) -> list[dict[str, Any]]:
    """`read_about` of many parts."""
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        return list(pool.map(lambda name: read_about(folder, name), names))


def part_name(index: int, run_fingerprint: str, revision: int = 0) -> str:
    """A shard's part file; revision r > 0 holds what a later try made of the rows that had failed until then."""
    suffix = f".r{revision}" if revision else ""
    return f"part-{index:06d}-{run_fingerprint}{suffix}.parquet"


def parts_by_shard(plan: dict[str, Any], names: Iterable[str]) -> list[list[str]]:
    """For each shard of a plan its part files among `names`, in order of revision; empty where it is not committed."""
    found: list[dict[int, str]] = [{} for _ in range(plan["shards"])]
    for name in names:
        match = PART.fullmatch(name)
        if match and match[2] == plan["run_fingerprint"] and int(match[1]) < len(found):
            found[int(match[1])][int(match[3] or 0)] = name
    # A revision counts only on top of all before it.
    return [[parts[r] for r in range(len(parts)) if r in parts] if 0 in parts else [] for parts in found]


class Assignments:
    """The committed assignments of one run, addressed by row number, for training.

    Parts are read when their rows are asked for; at most `cache_bytes` of them stay in memory, and stay behind when this is
    sent to another process. Raises UserError if the folder (a path or URL) holds none, or not all that its plan names.
    """

    def __init__(self, folder: str | Path, cache_bytes: int = CACHE_BYTES) -> None:
        self.folder = open_store(folder)
        self.location = self.folder.location
        try:
            self.plan: dict[str, Any] = json.loads(self.folder.read("plan.json"))
        except FileNotFoundError:
            raise UserError(
                f"{folder} holds no assignments: {folder}/plan.json does not exist (make them with `ortho assign`)"
            ) from None
        if self.plan.get("format") != FORMAT:
            raise UserError(
                f"the assignments in {folder} are of format {self.plan.get('format')}, this version reads {FORMAT}: "
                "assign again"
            )
        self.shards = parts_by_shard(self.plan, self.folder.names())
        missing = [i for i, parts in enumerate(self.shards) if not parts]
        if missing:
            raise UserError(
                f"the assignments in {folder} are not complete: {len(missing)} of {len(self.shards)} parts are missing "
                f"({part_name(missing[0], self.plan['run_fingerprint'])}, ...); run the same `ortho assign` again to "
                "finish them"
            )
        self.parts = [name for parts in self.shards for name in parts]
        self.patch_size = int(self.plan["config"]["patch_size"])
        self.regions = int(self.plan["config"]["regions"])
        #: Noise that rewards were raised by; there are no images that it was matched to.
        self.of_rewards = "reward" in self.plan["config"]
        self.is_free = self.plan["config"]["transform"] == "free"
        self.keeps_noise = self.is_free or self.plan["config"]["store"] == "noise"
        self.has_target_latents = bool(self.plan["config"]["store_latents"])
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[str, pa.Table] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}

    @cached_property
    def starts(self) -> np.ndarray:
        """Number of the first row of each part, and of the row after the last. Raises UserError if there are no rows."""
        starts = np.cumsum([0, *(about["rows"] for about in read_abouts(self.folder, self.parts))])
        if not starts[-1]:
            raise UserError(f"{self.location} holds no assigned rows: all were quarantined, see failures.jsonl in it")
        return starts

    def __len__(self) -> int:
        return int(self.starts[-1])

    def rows(self, index: Sequence[int], columns: list[str]) -> list[dict[str, Any]]:
        """The rows at `index`, in that order, as dictionaries; list columns come as float32 arrays.

        Raises UserError if a part is damaged.
        """
        found = []
        for i in index:
            part = int(np.searchsorted(self.starts, i, side="right")) - 1
            table, row = self._part(self.parts[part]), int(i - self.starts[part])
            found.append({c: self._value(table[c], row) for c in columns})
        return found

    @staticmethod
    def _value(column: pa.ChunkedArray, row: int) -> Any:
        scalar = column[row]
        if pa.types.is_list(column.type) and scalar.is_valid:
            return scalar.values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        return scalar.as_py()

    def _part(self, name: str) -> pa.Table:
        if name not in self._cache:
            self._cache[name] = read_part(self.folder, name)
            while sum(t.nbytes for t in self._cache.values()) > self.cache_bytes and len(self._cache) > 1:
                self._cache.popitem(last=False)
        self._cache.move_to_end(name)
        return self._cache[name]

    def noise(self, index: Sequence[int], latent_shape: tuple[int, int, int]) -> Float[Tensor, "B C H W"]:
        """Qε of the rows at `index`. Raises UserError if it does not fit the shape or its checksum."""
        column = "noise" if self.keeps_noise else "skew"
        rows = self.rows(index, ["sample_id", "noise_seed", column, "noise_checksum"])
        if self.keeps_noise:
            m = int(np.prod(latent_shape))
        else:
            m = self.regions**2 * skew_parameters(block_dimension(latent_shape, self.patch_size))
        for row in rows:
            if len(row[column]) != m:
                raise UserError(
                    f"the assignments in {self.location} have {len(row[column])} numbers of {column} per image; a model "
                    f"with latent {latent_shape} and patch size {self.patch_size} needs {m}: they were made for another model"
                )
        kept = torch.from_numpy(np.stack([row[column] for row in rows]))
        if self.keeps_noise:
            noise = kept.reshape(-1, *latent_shape)
        else:
            seeds = [row["noise_seed"] for row in rows]
            noise = rebuild_noise(seeds, kept, self.patch_size, latent_shape, self.regions)
        recorded = np.array([row["noise_checksum"] for row in rows])
        wrong = np.flatnonzero(np.abs(noise_checksum(noise) - recorded) > CHECKSUM_TOLERANCE)
        if len(wrong):
            names = [rows[i]["sample_id"] for i in wrong[:3]]
            raise UserError(f"{self.location}: the rebuilt noise of {names} does not match its checksum; assign again")
        return noise

    def mean_noise(self, latent_shape: tuple[int, int, int], most: int = MEAN_OF) -> Float[Tensor, "C H W"]:
        """The mean of the assigned noise over the rows, of a larger set over `most` from all over it."""
        count = min(len(self), most)
        index = [i * len(self) // count for i in range(count)]
        total = torch.zeros(latent_shape, dtype=torch.float64)
        for start in range(0, count, AT_ONCE):
            total += self.noise(index[start : start + AT_ONCE], latent_shape).double().sum(0)
        return (total / count).float()

    def row_bytes(self, latent_shape: tuple[int, int, int], target_shape: tuple[int, int, int]) -> int:
        """About how much memory a row takes once it is read."""
        n = int(np.prod(latent_shape))
        noise = n if self.keeps_noise else 0
        skew = 0 if self.is_free else self.regions**2 * skew_parameters(block_dimension(latent_shape, self.patch_size))
        return 512 + 4 * (noise + skew + int(np.prod(target_shape)) * self.has_target_latents)

    def base_noise(self, index: Sequence[int], latent_shape: tuple[int, int, int]) -> Float[Tensor, "B C H W"]:
        """ε of the rows at `index`, what their search began from."""
        return seeded_normal([row["noise_seed"] for row in self.rows(index, ["noise_seed"])], latent_shape)

    def found(self, shard: int, latent_shape: tuple[int, int, int]) -> dict[str, Start]:
        """What the search of each sample of a shard ended at, for another search to start from.

        Reads just that, past the cache: each shard is asked for once, and from several threads.
        """
        column = "noise" if self.is_free else "skew"
        kept: dict[str, Start] = {}
        for name in self.shards[shard]:
            for row in read_part(self.folder, name, ["sample_id", "noise_seed", column]).to_pylist():
                value = torch.tensor(row[column], dtype=torch.float32)
                if self.is_free:
                    value -= seeded_normal([row["noise_seed"]], latent_shape).flatten()
                kept[row["sample_id"]] = Start(row["noise_seed"], value)
        return kept

    def targets(self, index: Sequence[int], target_shape: tuple[int, int, int]) -> Float[Tensor, "B c h w"]:
        """The stored target latents of the rows at `index`."""
        flat = np.stack([row["target_latent"] for row in self.rows(index, ["target_latent"])])
        return torch.from_numpy(flat.reshape(len(index), *target_shape))
