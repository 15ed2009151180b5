"""CSV and TSV: with a header that names the columns, or two columns, one of them image names. Quoted cells may have line ends."""

import ast
import csv
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from io import BufferedIOBase
from typing import Any

import numpy as np

from ortho_core.errors import BadRow
from ortho_core.pairs.formats.row_file import RowFile, in_blocks
from ortho_core.pairs.formats.text_lines import lines
from ortho_core.pairs.images import SUFFIXES
from ortho_core.pairs.names import plain

#: Accepted delimiters. Programs write semicolons in countries where numbers have decimal commas.
DELIMITERS = (",", "\t", ";", "|")
#: The line that Excel may write before the header.
SEPARATOR = re.compile(r'"?sep=."?\s*')
#: A longer cell, in characters, is not read as a list of captions.
LONGEST_LIST = 1 << 16


class Delimited:
    """A `Reader` of rows of cells. A row may span several lines, as the `csv` module reads it."""

    def shape(self, stream: BufferedIOBase, table: RowFile, wanted: set[str]) -> RowFile | str:
        delimiters = sorted(DELIMITERS, key=lambda d: d != ("\t" if table.kind == ".tsv" else ","))
        firsts = [(d, next(_rows(stream, replace(table, form=d), 0), (0, None))[1]) for d in delimiters]
        headers = [(d, [cell.strip() for cell in row]) for d, row in firsts if isinstance(row, list)]
        known, delimiter, header = max(
            ((len({plain(cell) for cell in row} & wanted), d, row) for d, row in headers),
            key=lambda candidate: candidate[0],
            default=(0, "", []),
        )
        if known:
            return replace(table, form=delimiter, columns=tuple(header))
        for delimiter, row in headers:
            images = [number for number, cell in enumerate(row) if _is_image(cell)]
            if len(row) == 2 and len(images) == 1:
                columns = ("image", "text") if images == [0] else ("text", "image")
                return replace(table, form=delimiter, columns=columns, header=False)
        return f"its first row is {', '.join(headers[0][1])[:200]!r}" if headers else "it has no rows"

    def starts(self, stream: BufferedIOBase, table: RowFile) -> Iterator[np.ndarray]:
        rows = _rows(stream, table, 0)
        if table.header:
            next(rows, None)
        return in_blocks(offset for offset, _ in rows)

    def values(self, stream: BufferedIOBase, table: RowFile, offset: int) -> Iterator[dict[str, Any] | BadRow]:
        rows = _rows(stream, table, offset)
        if table.header and not offset:
            next(rows, None)
        for _, row in rows:
            yield row if isinstance(row, BadRow) else self._named(row, table)

    @staticmethod
    def _named(row: list[str], table: RowFile) -> dict[str, Any] | BadRow:
        columns = len(table.columns)
        if len(row) < columns or any(row[columns:]):
            hint = "; a caption that contains the delimiter needs quotes" if len(row) > columns else ""
            return BadRow("wrong-columns", f"{len(row)} columns, not {columns}{hint}")
        values: dict[str, Any] = dict(zip(table.columns, map(str.strip, row), strict=False))
        prompt = table.names[0]
        try:
            "".join(row).encode()
        except UnicodeEncodeError as error:
            return BadRow("not-text", f"not text in UTF-8: {error}")
        return {**values, prompt: _captions(values[prompt])} if prompt in values else values


def _rows(stream: BufferedIOBase, table: RowFile, offset: int) -> Iterator[tuple[int, list[str] | BadRow]]:
    """(offset, cells) of each row; blank lines are skipped."""
    pulled: list[int] = []
    ended = False

    def texts() -> Iterator[str]:
        nonlocal ended
        for at, line in lines(stream, table.encoding, offset):
            pulled.append(at)
            text = line.decode("utf-8", "surrogateescape")
            if not at:
                text = text.removeprefix("\ufeff")
                if SEPARATOR.fullmatch(text):
                    continue
            yield text
        ended = True

    reader = csv.reader(texts(), delimiter=table.form)
    while True:
        pulled.clear()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # for example a quote that is never closed
            yield pulled[0], BadRow("not-csv", f"not a row of cells: {error}")
            continue
        if row:
            yield pulled[0], BadRow("not-csv", "a quote is never closed") if ended else row


def _captions(cell: str) -> str | list[str]:
    """A cell unchanged, or its captions if it contains a list of texts (JSON or Python)."""
    if not (cell.startswith("[") and cell.endswith("]")) or len(cell) > LONGEST_LIST:
        return cell
    for parse in (json.loads, ast.literal_eval):
        try:
            texts = parse(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts):
            return texts
    return cell


def _is_image(cell: str) -> bool:
    stem, dot, suffix = cell.strip().rpartition(".")
    return bool(stem) and dot + suffix.lower() in SUFFIXES
