"""Shards of a set in which every caption of a record is a row of its own."""

from collections.abc import Iterator

from ortho_core.errors import UserError
from ortho_core.pairs.captions import captions_in
from ortho_core.pairs.rows import Format, Shard


def cut_by_captions(format: Format, rows: int) -> Iterator[Shard]:
    """Every row once, in order, at most `rows` to a shard. A record may be in several: `Shard.skip` of its captions are in
    the shards before."""
    index = first = 0
    singly = format.cuts(1)
    for cut in format.cuts(rows):
        prompts = format.prompts(Shard(0, 0, cut.rows, cut.file, cut.offset))
        records = [(next(singly).offset, captions_in(prompt)) for prompt in prompts]
        if len(records) != cut.rows:
            raise UserError(f"{cut.file} has changed while it was read")
        captions = [(offset, number) for offset, copies in records for number in range(copies)]
        for at in range(0, len(captions), rows):
            (offset, skip), mine = captions[at], min(rows, len(captions) - at)
            yield Shard(index, first, mine, cut.file, offset, skip)
            index, first = index + 1, first + mine
