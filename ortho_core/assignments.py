"""The assignment record: which noise belongs to which image, in Parquet, small and checked.

A record keeps the noise as its seed and skew parameters (m float32, 480 bytes at C = 4, p = 2) and a checksum of the noise
they rebuild. A part file is complete in itself: its schema metadata carries the rows that failed and the run's fingerprint.
"""

import json
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
        ("evaluations", pa.int32()),
        ("model_fingerprint", pa.string()),
        ("config_fingerprint", pa.string()),
        ("target_latent", pa.list_(pa.float32())),
    ]
)
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
    seeds: Sequence[int], skew: Float[Tensor, "B m"], patch_size: int, latent_shape: tuple[int, int, int]
) -> Float[Tensor, "B C H W"]:
    """Qε from its record, computed in float64 and returned in float32, the same on every machine to rounding."""
    base = seeded_normal(list(seeds), latent_shape)
    return rotate(base.double(), skew.double(), patch_size).float()


def noise_checksum(noise: Float[Tensor, "B C H W"]) -> Float[np.ndarray, " B"]:
    """⟨noise, w⟩/√n with w a fixed standard normal vector: one number that any change of the noise moves, float64.

    A number and not a hash, so that the last bit of another machine's matrix product is not taken for damage; damaged
    bytes are caught by the page checksums of the Parquet file.
    """
    flat = noise.flatten(1).double().numpy()
    weights = seeded_normal([0], (flat.shape[1],))[0].double().numpy()
    return np.asarray(flat @ weights / np.sqrt(flat.shape[1]), dtype=np.float64)


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
    """The committed assignments of one run, in the order of their parts, for training. Holds the table in memory.

    Raises UserError if the folder holds none, or if its rows do not fit together.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        plan_file = self.folder / "plan.json"
        if not plan_file.is_file():
            raise UserError(
                f"{folder} holds no assignments: {plan_file} does not exist (make them with `ortho assign`)"
            )
        self.plan: dict[str, Any] = json.loads(plan_file.read_text())
        parts = [self.folder / p for p in part_names(self.plan)]
        missing = [p.name for p in parts if not p.is_file()]
        if missing:
            raise UserError(
                f"the assignments in {folder} are not complete: {len(missing)} of {len(parts)} parts are missing "
                f"({missing[0]}, ...); run the same `ortho assign` again to finish them"
            )
        try:
            tables = [pq.read_table(p, schema=SCHEMA, page_checksum_verification=True) for p in parts]
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"the assignments in {folder} are damaged: {error}; delete the part, assign again"
            ) from error
        self.table = pa.concat_tables(tables)
        if len(self.table) == 0:
            raise UserError(f"{folder} holds no assigned rows: all were quarantined, see {folder}/failures.jsonl")
        self.patch_size = int(self.plan["config"]["patch_size"])
        self.has_target_latents = self.table["target_latent"].null_count == 0

    def __len__(self) -> int:
        return len(self.table)

    def take(self, index: Sequence[int]) -> dict[str, list[Any]]:
        """The rows at `index` as a dictionary of columns; skew and target_latent stay out (see `noise`, `targets`)."""
        light = self.table.drop_columns(["skew", "target_latent"])
        columns: dict[str, list[Any]] = light.take(pa.array(index, pa.int64())).to_pydict()
        return columns

    def noise(self, index: Sequence[int], latent_shape: tuple[int, int, int]) -> Float[Tensor, "B C H W"]:
        """Qε of the rows at `index`. Raises UserError if it does not fit the shape or its checksum."""
        rows = self.table.select(["sample_id", "noise_seed", "skew", "noise_checksum"]).take(
            pa.array(index, pa.int64())
        )
        m = skew_parameters(block_dimension(latent_shape, self.patch_size))
        flat = rows["skew"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        if flat.size != m * len(rows):
            raise UserError(
                f"the assignments in {self.folder} have {flat.size // len(rows)} skew parameters per image; a model with "
                f"latent {latent_shape} and patch size {self.patch_size} needs {m}: they were made for another model"
            )
        skew = torch.from_numpy(flat.astype(np.float32).reshape(len(rows), m))
        noise = rebuild_noise(rows["noise_seed"].to_pylist(), skew, self.patch_size, latent_shape)
        wrong = np.abs(noise_checksum(noise) - rows["noise_checksum"].to_numpy()) > CHECKSUM_TOLERANCE
        if wrong.any():
            names = [rows["sample_id"][int(i)].as_py() for i in np.flatnonzero(wrong)[:3]]
            raise UserError(f"{self.folder}: the rebuilt noise of {names} does not match its checksum; assign again")
        return noise

    def targets(self, index: Sequence[int], latent_shape: tuple[int, int, int]) -> Float[Tensor, "B C H W"]:
        """The stored target latents of the rows at `index`."""
        column = self.table["target_latent"].take(pa.array(index, pa.int64())).combine_chunks()
        flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        return torch.from_numpy(flat.reshape(len(index), *latent_shape))


def part_name(index: int, run_fingerprint: str) -> str:
    return f"part-{index:06d}-{run_fingerprint}.parquet"


def part_names(plan: dict[str, Any]) -> Iterator[str]:
    """The file names of every part of a plan, in order."""
    return (part_name(i, plan["run_fingerprint"]) for i in range(plan["shards"]))
