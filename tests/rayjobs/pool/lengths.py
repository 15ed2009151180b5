"""A job, a plan and a search of the tests' own: nothing in them knows of noise or models."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import pyarrow as pa

from ortho_core.errors import UserError
from ortho_core.framing.framing import Framing
from ortho_core.pairs.decoding import usable_rows
from ortho_core.pairs.pair_set import PairSet
from ortho_core.records.parts import ShardResult
from ortho_core.records.plan import ShardedPlan
from rayjobs.pool.ledger import Ledger
from rayjobs.pool.protocol import Usage
from rayjobs.verb.plan import claim

ROWS = 11
SCHEMA = pa.schema([("sample_id", pa.string()), ("letters", pa.int64()), ("pixels", pa.int64())])


class LengthsPlan(ShardedPlan):
    verb: ClassVar[str] = "measure"

    kind: Literal["lengths"] = "lengths"

    @property
    def part_schema(self):
        return SCHEMA


@dataclass(frozen=True)
class LengthsJob:
    """What the pool asks of a job, and no more."""

    out: str
    pool_size: tuple[int, int]
    max_failure_rate: float = 1.0
    cpus_per_worker: float = 0.5
    cpus_per_decoder: float | None = None
    node_labels: dict[str, str] | None = None

    def gpus(self):
        return 0.0

    def worker_device(self):
        return "cpu"

    def own_device(self):
        return "cpu"

    def fitting(self, wanted):
        return wanted

    def spare_cpu(self, workers):
        return 0.0


@dataclass(frozen=True)
class Lengths:
    """How many letters each prompt has, and how many pixels its image."""

    pairs: PairSet
    passes: int = 1
    broken: str = ""

    def load(self, place, notes):
        if self.broken:
            raise UserError(self.broken)
        notes.append("ready")
        return LengthsSearcher(self.pairs, place.decoder(self.pairs))


class LengthsSearcher:
    def __init__(self, pairs, decode):
        self.pairs, self.decode, self.shards = pairs, decode, 0

    def search(self, shard, only):
        result = ShardResult()
        pairs = list(usable_rows(self.pairs, shard, result.failures, only))
        for chunk in self.decode(self.pairs, iter([pairs] if pairs else []), Framing.at((4, 4))):
            for pair, image in chunk:
                size = 0 if isinstance(image, UserError) else image[0].size
                result.rows.append({"sample_id": pair.sample_id, "letters": len(pair.prompt), "pixels": size})
        self.shards += 1
        return result

    def usage(self):
        return Usage(slots=1, computed=self.shards, waited=0.0, killed=0)


def begin(pairs, out):
    shards = pairs.shards(2)
    plan = LengthsPlan(pairs_fingerprint=pairs.fingerprint(), rows=ROWS, rows_per_shard=2, shards=len(shards))
    return Ledger(claim(out, plan), plan), shards
