"""Part files of assignments: their schema, their names, how they are written and read."""

import io
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from ortho_core.errors import UserError
from ortho_core.pairs.rows import Failure
from ortho_core.storage.store import Store, one_line
from ortho_core.text.parsing import parse_model

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("prompt", pa.string()),
        ("image", pa.string()),
        ("pixels", pa.uint64()),
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

#: Footers that are read side by side: what an object store's latency asks for.
PART_FOOTERS_AT_ONCE = 16

#: The key of `PartAbout` in a part file's schema metadata.
METADATA = b"ortho"

PART = re.compile(r"part-(\d{6,})-([0-9a-z]+)(?:\.r(\d+))?\.parquet")


class PartAbout(BaseModel):
    """What a part file says of itself, in its schema metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: int
    #: 0, or which later try at the rows that had failed until then.
    revision: int
    run_fingerprint: str
    #: Fingerprint of the files that the worker had loaded the model from; None where no model was needed.
    loaded_fingerprint: str | None = None
    #: Seconds since the epoch.
    written: float
    truncated_prompts: int = 0
    evaluations: int = 0
    candidate_forwards: int = 0
    #: Sums of the losses over the rows that know theirs, and how many do: an imported row may not.
    loss_sum: float = 0.0
    losses: int = 0
    initial_loss_sum: float = 0.0
    initial_losses: int = 0
    failures: tuple[Failure, ...] = ()
    #: How far the samples of each prompt are apart, in an evaluation's part that was asked for it.
    diversity: tuple[float, ...] | None = None


class Footer(NamedTuple):
    """What is known of a part file without reading its rows."""

    rows: int
    about: PartAbout


def encode_part(rows: Sequence[Mapping[str, object]], about: PartAbout, schema: pa.Schema) -> bytes:
    """One part file; of a row, what the schema names is kept."""
    metadata = {METADATA: about.model_dump_json()}
    table = pa.Table.from_pylist(rows, schema=schema).replace_schema_metadata(metadata)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def read_footer(folder: Store, name: str) -> Footer:
    """The number of rows of a part file and what it says of itself. Raises UserError if it is not readable."""
    try:
        with folder.open(name) as stream:
            footer = pq.read_metadata(stream)
        about = parse_model(PartAbout, footer.metadata[METADATA], "its description")
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder.location}/{name} is not a readable assignment part: {one_line(error)}") from error
    return Footer(footer.num_rows, about)


def read_part(folder: Store, name: str, columns: list[str] | None = None, verb: str = "assign") -> pa.Table:
    """All rows of a part file, every page against its checksum. Raises UserError if it is damaged; `verb` made it."""
    try:
        with folder.open(name) as stream:
            return pq.ParquetFile(stream, page_checksum_verification=True).read(columns)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{folder.location}/{name} is damaged: {one_line(error)}; run the same `ortho {verb}` again, it makes the part anew"
        ) from error


def read_footers(folder: Store, names: Sequence[str]) -> list[Footer]:
    """`read_footer` of many parts."""
    with ThreadPoolExecutor(PART_FOOTERS_AT_ONCE) as pool:
        return list(pool.map(lambda name: read_footer(folder, name), names))


def part_name(index: int, run_fingerprint: str, revision: int = 0) -> str:
    """A shard's part file; revision r > 0 holds what a later try made of the rows that had failed until then."""
    suffix = f".r{revision}" if revision else ""
    return f"part-{index:06d}-{run_fingerprint}{suffix}.parquet"


@dataclass
class ShardResult:
    """Records and failures of one shard: together, every row of it (or every row that was asked for)."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    truncated_prompts: int = 0
    evaluations: int = 0
    candidate_forwards: int = 0
    #: What `PartAbout` says of them.
    loaded_fingerprint: str | None = None
    #: What `PartAbout.diversity` says.
    diversity: tuple[float, ...] | None = None

    def losses(self, column: str) -> list[float]:
        """Those of the rows that know theirs."""
        return [float(value) for row in self.rows if (value := row.get(column)) is not None]
