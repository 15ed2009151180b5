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

#: The columns of a row's `Frame`, in its order.
FRAME_COLUMNS = ("original_height", "original_width", "crop_top", "crop_left", "height", "width")

SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("prompt", pa.string()),
        ("image", pa.string()),
        ("pixels", pa.uint64()),
        ("noise_seed", pa.int64()),
        ("patch_size", pa.int32()),
        ("regions", pa.int32()),
        *((name, pa.int32()) for name in FRAME_COLUMNS),
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

#: The schema of records that store the noise in half precision.
HALF_SCHEMA = SCHEMA.set(SCHEMA.get_field_index("noise"), pa.field("noise", pa.list_(pa.float16())))

#: Additional columns of a reward search: each reward by name, before and after.
REWARD_FIELDS = [pa.field(name, pa.map_(pa.string(), pa.float32())) for name in ("initial_rewards", "rewards")]

#: Footers that are read in parallel, because of the latency of object stores.
PART_FOOTERS_AT_ONCE = 16

#: The key of `PartAbout` in a part file's schema metadata.
METADATA = b"ortho"

PART = re.compile(r"part-(\d{6,})-([0-9a-z]+)(?:\.r(\d+))?\.parquet")


class PartAbout(BaseModel):
    """The description of a part file in its schema metadata."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: int
    #: 0, or r for the r-th retry of the rows that had failed until then.
    revision: int
    run_fingerprint: str
    #: Fingerprint of the model files that the worker loaded; None if no model was needed.
    loaded_fingerprint: str | None = None
    #: Seconds since the epoch.
    written: float
    truncated_prompts: int = 0
    evaluations: int = 0
    candidate_forwards: int = 0
    #: Sums of the losses, and the number of rows with a loss: an imported row may have none.
    loss_sum: float = 0.0
    losses: int = 0
    initial_loss_sum: float = 0.0
    initial_losses: int = 0
    failures: tuple[Failure, ...] = ()
    #: The diversity of each prompt; only in one part of an evaluation.
    diversity: tuple[float, ...] | None = None
    #: If the run has several sizes of images: the number of rows of each, `WIDTHxHEIGHT`, in the order of the rows.
    sizes: tuple[tuple[str, int], ...] = ()


class Footer(NamedTuple):
    """The data of a part file that can be read without its rows."""

    rows: int
    about: PartAbout


def encode_part(rows: Sequence[Mapping[str, object]], about: PartAbout, schema: pa.Schema) -> bytes:
    """The content of a part file; only columns of the schema are stored."""
    metadata = {METADATA: about.model_dump_json()}
    table = pa.Table.from_pylist(rows, schema=schema).replace_schema_metadata(metadata)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def read_footer(folder: Store, name: str) -> Footer:
    """The number of rows and the description of a part file. Raises UserError if it is not readable."""
    try:
        with folder.open(name) as stream:
            footer = pq.read_metadata(stream)
        about = parse_model(PartAbout, footer.metadata[METADATA], "its description")
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder.location}/{name} is not a readable assignment part: {one_line(error)}") from error
    return Footer(footer.num_rows, about)


def read_part(folder: Store, name: str, columns: list[str] | None = None, verb: str = "assign") -> pa.Table:
    """All rows of a part file, with page checksums verified. Raises UserError if it is damaged; `verb` made it."""
    try:
        with folder.open(name) as stream:
            return pq.ParquetFile(stream, page_checksum_verification=True).read(columns)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{folder.location}/{name} is damaged: {one_line(error)}; run the same `ortho {verb}` again to make the part again"
        ) from error


def read_footers(folder: Store, names: Sequence[str]) -> list[Footer]:
    """`read_footer` of many parts."""
    with ThreadPoolExecutor(PART_FOOTERS_AT_ONCE) as pool:
        return list(pool.map(lambda name: read_footer(folder, name), names))


def part_name(index: int, run_fingerprint: str, revision: int = 0) -> str:
    """The name of a shard's part file. Revision r > 0 has the rows of the r-th retry of failed rows."""
    suffix = f".r{revision}" if revision else ""
    return f"part-{index:06d}-{run_fingerprint}{suffix}.parquet"


@dataclass
class ShardResult:
    """Records and failures of one shard: together, all rows of the shard, or all requested rows."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    truncated_prompts: int = 0
    evaluations: int = 0
    candidate_forwards: int = 0
    #: As in `PartAbout`.
    loaded_fingerprint: str | None = None
    #: As in `PartAbout`.
    diversity: tuple[float, ...] | None = None
    #: As in `PartAbout`.
    sizes: tuple[tuple[str, int], ...] = ()

    def losses(self, column: str) -> list[float]:
        """The values of a loss column, of the rows that have one."""
        return [float(value) for row in self.rows if (value := row.get(column)) is not None]
