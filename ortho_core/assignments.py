"""The assignment record: which noise belongs to which image, in Parquet, small and checked.

A record keeps the noise as its seed and skew parameters (m float32, 480 bytes at C = 4, p = 2) and a checksum of the noise
they rebuild; noise that is no rotation (regions 0) is kept itself. A part file is complete in itself: its schema metadata
carries the rows that failed and the run's fingerprint.
"""

import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from ortho_core.errors import UserError
from ortho_core.noise import seeded_normal
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
#: Bump when the meaning of a plan or of the files it describes changes.
FORMAT = 2
#: Two machines' linear algebra agrees far better than this; another seed, skew or shape does not.
CHECKSUM_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Failure:
    """A quarantined row and why."""

    sample_id: str
    row: int
    reason: str
    message: str


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


def write_part(path: Path, rows: list[dict[str, Any]], failures: list[Failure], about: dict[str, Any]) -> None:
    """Write one part file, not atomically: publishing it is the ledger's work. `about` goes into the metadata."""
    metadata = {"ortho": json.dumps({**about, "failures": [vars(f) for f in failures]})}
    table = pa.Table.from_pylist(rows, schema=SCHEMA).replace_schema_metadata(metadata)
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)


def read_about(path: Path) -> dict[str, Any]:
    """What `write_part` put into the metadata, and the number of `rows`; reads the footer only. Raises UserError."""
    try:
        footer = pq.read_metadata(path)
        about: dict[str, Any] = json.loads(footer.metadata[b"ortho"])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a readable assignment part: {error!r}") from error
    return {**about, "rows": footer.num_rows}


class Assignments:
    """The committed assignments of one run, addressed by row number, for training.

    Parts are read when their rows are asked for; at most `cache_bytes` of them stay in memory. Raises UserError if the
    folder holds none, or not all that its plan names.
    """

    def __init__(self, folder: str | Path, cache_bytes: int = 2 << 30) -> None:
        self.folder = Path(folder)
        plan_file = self.folder / "plan.json"
        if not plan_file.is_file():
            raise UserError(
                f"{folder} holds no assignments: {plan_file} does not exist (make them with `ortho assign`)"
            )
        self.plan: dict[str, Any] = json.loads(plan_file.read_text())
        if self.plan.get("format") != FORMAT:
            raise UserError(
                f"the assignments in {folder} are of format {self.plan.get('format')}, this version reads {FORMAT}: "
                "assign again"
            )
        self.parts = [self.folder / p for p in part_names(self.plan)]
        missing = [p.name for p in self.parts if not p.is_file()]
        if missing:
            raise UserError(
                f"the assignments in {folder} are not complete: {len(missing)} of {len(self.parts)} parts are missing "
                f"({missing[0]}, ...); run the same `ortho assign` again to finish them"
            )
        #: Number of the first row of each part, and of the row after the last.
        self.starts = np.cumsum([0, *(read_about(p)["rows"] for p in self.parts)])
        if len(self) == 0:
            raise UserError(f"{folder} holds no assigned rows: all were quarantined, see {folder}/failures.jsonl")
        self.patch_size = int(self.plan["config"]["patch_size"])
        self.regions = int(self.plan["config"]["regions"])
        self.is_free = self.plan["config"]["transform"] == "free"
        self.has_target_latents = bool(self.plan["config"]["store_latents"])
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def rows(self, index: Sequence[int], columns: list[str]) -> list[dict[str, Any]]:
        """The rows at `index`, in that order, as dictionaries; list columns come as float32 arrays.

        Raises UserError if a part is damaged.
        """
        found = []
        for i in index:
            part = int(np.searchsorted(self.starts, i, side="right")) - 1
            table, row = self._part(part), int(i - self.starts[part])
            found.append({c: self._value(table[c], row) for c in columns})
        return found

    @staticmethod
    def _value(column: pa.ChunkedArray, row: int) -> Any:
        scalar = column[row]
        if pa.types.is_list(column.type) and scalar.is_valid:
            return scalar.values.to_numpy(zero_copy_only=False)
        return scalar.as_py()

    def _part(self, part: int) -> pa.Table:
        if part not in self._cache:
            try:
                table = pq.read_table(self.parts[part], schema=SCHEMA, page_checksum_verification=True)
            except (OSError, pa.ArrowException) as error:
                raise UserError(f"{self.parts[part]} is damaged: {error}; delete it and assign again") from error
            self._cache[part] = table
            while sum(t.nbytes for t in self._cache.values()) > self.cache_bytes and len(self._cache) > 1:
                self._cache.popitem(last=False)
        self._cache.move_to_end(part)
        return self._cache[part]

    def noise(self, index: Sequence[int], latent_shape: tuple[int, int, int]) -> Float[Tensor, "B C H W"]:
        """Qε of the rows at `index`. Raises UserError if it does not fit the shape or its checksum."""
        column = "noise" if self.is_free else "skew"
        rows = self.rows(index, ["sample_id", "noise_seed", column, "noise_checksum"])
        if self.is_free:
            m = int(np.prod(latent_shape))
        else:
            m = self.regions**2 * skew_parameters(block_dimension(latent_shape, self.patch_size))
        for row in rows:
            if len(row[column]) != m:
                raise UserError(
                    f"the assignments in {self.folder} have {len(row[column])} numbers of {column} per image; a model with "
                    f"latent {latent_shape} and patch size {self.patch_size} needs {m}: they were made for another model"
                )
        kept = torch.from_numpy(np.stack([row[column] for row in rows]))
        if self.is_free:
            noise = kept.reshape(-1, *latent_shape)
        else:
            seeds = [row["noise_seed"] for row in rows]
            noise = rebuild_noise(seeds, kept, self.patch_size, latent_shape, self.regions)
        recorded = np.array([row["noise_checksum"] for row in rows])
        wrong = np.flatnonzero(np.abs(noise_checksum(noise) - recorded) > CHECKSUM_TOLERANCE)
        if len(wrong):
            names = [rows[i]["sample_id"] for i in wrong[:3]]
            raise UserError(f"{self.folder}: the rebuilt noise of {names} does not match its checksum; assign again")
        return noise

    def base_noise(self, index: Sequence[int], latent_shape: tuple[int, int, int]) -> Float[Tensor, "B C H W"]:
        """ε of the rows at `index`, what their search began from."""
        return seeded_normal([row["noise_seed"] for row in self.rows(index, ["noise_seed"])], latent_shape)

    def parameters(self, part: int, latent_shape: tuple[int, int, int]) -> dict[str, Float[Tensor, " m"]]:
        """What the search of each sample of a part ended at, for another search to start from."""
        column = "noise" if self.is_free else "skew"
        rows = self._part(part).select(["sample_id", "noise_seed", column]).to_pylist()
        kept = {row["sample_id"]: torch.tensor(row[column], dtype=torch.float32) for row in rows}
        if self.is_free:
            for row in rows:
                kept[row["sample_id"]] -= seeded_normal([row["noise_seed"]], latent_shape).flatten()
        return kept

    def targets(self, index: Sequence[int], latent_shape: tuple[int, int, int]) -> Float[Tensor, "B C H W"]:
        """The stored target latents of the rows at `index`."""
        flat = np.stack([row["target_latent"] for row in self.rows(index, ["target_latent"])])
        return torch.from_numpy(flat.reshape(len(index), *latent_shape))


def part_name(index: int, run_fingerprint: str) -> str:
    return f"part-{index:06d}-{run_fingerprint}.parquet"


def part_names(plan: dict[str, Any]) -> Iterator[str]:
    """The file names of every part of a plan, in order."""
    return (part_name(i, plan["run_fingerprint"]) for i in range(plan["shards"]))
