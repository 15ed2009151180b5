"""Part files of assignments: their schema, their names, how they are written and read."""

import io
import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ortho_core.errors import UserError
from ortho_core.pairs.rows import Failure
from ortho_core.storage.store import Store

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

#: Footers that are read side by side: what an object store's latency asks for.
FOOTERS_AT_ONCE = 16

PART = re.compile(r"part-(\d{6,})-([0-9a-z]+)(?:\.r(\d+))?\.parquet")


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


@dataclass
class ShardResult:
    """Records and failures of one shard: together, every row of it (or every row that was asked for)."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    truncated_prompts: int = 0
    evaluations: int = 0
    candidate_forwards: int = 0
    #: What else the part file says of the shard.
    about: dict[str, Any] = field(default_factory=dict)
