"""Shards of a set in which each caption of a record is a separate row (`--caption all`)."""

from collections.abc import Iterator

from ortho_core.errors import UserError
from ortho_core.pairs.captions import captions_in
from ortho_core.pairs.hold_out import Part
from ortho_core.pairs.rows import Format, Shard


def cut_by_captions(format: Format, rows: int, part: Part | None) -> Iterator[Shard]:
    """Cut the part into pieces of at most `rows` rows: each row once, in order. All captions of a record are in one part.

    A record may be in several pieces: `Shard.skip` is the number of its captions in earlier pieces.
    """
    row = record = 0
    singly = format.cuts(1)
    for cut in format.cuts(rows):
        prompts = format.prompts(Shard(0, 0, cut.rows, cut.file, cut.offset))
        records = [(next(singly).offset, captions_in(prompt)) for prompt in prompts]
        if len(records) != cut.rows:
            raise UserError(f"{cut.file} has changed while it was read")
        wanted = part.within(record, record + cut.rows) if part is not None else None
        captions = []
        for offset, copies in records:
            if wanted is None or wanted(record):
                captions += [(row + number, record, offset, number) for number in range(copies)]
            row, record = row + copies, record + 1
        for at in range(0, len(captions), rows):
            (first, of, offset, skip), last = captions[at], captions[min(at + rows, len(captions)) - 1]
            over = last[1] + 1 - of
            yield Shard(0, first, min(rows, len(captions) - at), cut.file, offset, skip, over, of)
