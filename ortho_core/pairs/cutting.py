"""Cut a pair set, or a part of one, into shards."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from ortho_core.pairs.every_caption import cut_by_captions
from ortho_core.pairs.hold_out import Part
from ortho_core.pairs.rows import Format, Shard

#: Largest number of records in a piece with held-out records; a reader searches the piece for them.
GRAIN = 64
#: Largest gap, in records of the other part, that is read over; a larger gap costs more than opening the file again.
GAP = 128


def cut(format: Format, rows: int, part: Part | None = None, every_caption: bool = False) -> list[Shard]:
    """Cut the part into shards of at most `rows` rows: each row once, in order. The result depends only on the input.

    Memory grows with the number of shards, and with the number of held-out rows if these are far apart.
    """
    sparse = part is not None and not part.training
    records = min(rows, GRAIN) if sparse else rows
    pieces = cut_by_captions(format, rows, part) if every_caption else _pieces(format, records, part)
    if sparse:
        pieces = _gathered(pieces, rows)
    return [piece if piece.index == i else replace(piece, index=i) for i, piece in enumerate(pieces)]


def _pieces(format: Format, records: int, part: Part | None) -> Iterator[Shard]:
    """Pieces of `records` consecutive records, with the number of the part's rows in each; pieces without any are left out."""
    first = 0
    for index, cut in enumerate(format.cuts(records)):
        if part is None:
            yield Shard(index, first, cut.rows, cut.file, cut.offset)
        elif count := part.count(first, first + cut.rows):
            yield Shard(0, first, count, cut.file, cut.offset, over=cut.rows)
        first += cut.rows


def _gathered(pieces: Iterable[Shard], rows: int) -> Iterator[Shard]:
    """Join pieces to shards of at most `rows` rows each; neighbouring pieces become one piece."""
    runs: list[Shard] = []
    count = 0
    for piece in pieces:
        if runs and count + piece.rows > rows:
            yield Shard.joined(0, runs)
            runs, count = [], 0
        count += piece.rows
        last = runs[-1] if runs else None
        if last is not None and _follows(piece, last):
            over = piece.first_record + piece.span - last.first_record
            runs[-1] = replace(last, rows=last.rows + piece.rows, over=over)
        else:
            runs.append(piece)
    if runs:
        yield Shard.joined(0, runs)


def _follows(piece: Shard, last: Shard) -> bool:
    gap = piece.first_record - last.first_record - last.span
    return piece.file == last.file and not piece.skip and gap <= GAP
