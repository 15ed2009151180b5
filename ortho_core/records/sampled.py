"""A fixed sample of a run's records that can be read in seconds for any number of rows."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from ortho_core.framing.frame import Frame, Size
from ortho_core.noise.seeded import seeded_normal
from ortho_core.records.assignments import Assignments, frame_of, shape_at
from ortho_core.records.parts import FRAME_COLUMNS, PART_FOOTERS_AT_ONCE, read_part

#: Largest number of sampled rows; a smaller set is read completely.
LOOKED_AT = 4096
#: Smallest and largest number of shards that the rows are sampled from.
FEWEST_SHARDS, MOST_SHARDS = 64, 1024
SAMPLED_COLUMNS = ["sample_id", "prompt", "image", "initial_loss", "loss", "evaluations"]


@dataclass(frozen=True)
class SampledRecord:
    """The result of one row's search, and the place of its record: row number `row` of the part file `part`."""

    part: str
    row: int
    sample_id: str
    prompt: str
    image: str
    #: The loss at the start of the search, and the lowest loss.
    initial_loss: float
    loss: float
    evaluations: int

    @property
    def fall(self) -> float:
        """The relative decrease of the loss by the search."""
        return 1 - self.loss / self.initial_loss if self.initial_loss else 0.0


class NoiseOfRecord(NamedTuple):
    """The noise of one record, and the frame of its image, if it has one."""

    #: ε.
    base: Float[Tensor, "C H W"]
    #: Qε.
    matched: Float[Tensor, "C H W"]
    frame: Frame | None


def spread(count: int, most: int) -> list[int]:
    """At most `most` evenly spaced numbers below `count`."""
    taken = min(count, most)
    return [i * count // taken for i in range(taken)]


def sampled_records(found: Assignments, rows: int = LOOKED_AT) -> list[SampledRecord]:
    """About `rows` records from the complete run, in its order: the same at every call, and all if there are no more.

    Raises UserError if a part is damaged.
    """
    wanted = max(FEWEST_SHARDS, -(-rows // found.plan.rows_per_shard))
    shards = spread(len(found.shards), min(MOST_SHARDS, wanted))
    each = -(-rows // max(1, len(shards)))

    def read(shard: int) -> list[SampledRecord]:
        records = []
        for part in found.shards[shard]:
            table = read_part(found.folder, part, SAMPLED_COLUMNS, found.plan.verb)
            taken = spread(table.num_rows, each)
            columns = table.take(taken).to_pylist() if taken else []
            records += [SampledRecord(part, row, **values) for row, values in zip(taken, columns, strict=True)]
        return records

    with ThreadPoolExecutor(PART_FOOTERS_AT_ONCE) as pool:
        return [record for records in pool.map(read, shards) for record in records]


def noise_of(
    found: Assignments,
    records: Sequence[SampledRecord],
    latent_shape: tuple[int, int, int],
    image_size: Size | None = None,
) -> list[NoiseOfRecord]:
    """The noise of some records; `latent_shape` is its shape for images of `image_size` (Y, X).

    Raises UserError if a part is damaged, or the noise does not fit the shape or its checksum.
    """
    kept: dict[tuple[str, int], dict[str, Any]] = {}
    for part in dict.fromkeys(record.part for record in records):
        rows = sorted({record.row for record in records if record.part == part})
        values = found.part_rows(part, rows, [*found.noise_columns, *FRAME_COLUMNS])
        kept |= {(part, row): value for row, value in zip(rows, values, strict=True)}
    noise = []
    for record in records:
        value = kept[record.part, record.row]
        frame = frame_of(value)
        shape = shape_at(frame, latent_shape, image_size)
        (base,), (matched,) = seeded_normal([value["noise_seed"]], shape), found.noise_of([value], shape)
        noise.append(NoiseOfRecord(base, matched, frame))
    return noise
