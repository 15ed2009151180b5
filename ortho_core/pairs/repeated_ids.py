"""Which rows bring an id that an earlier row has: found by hashes on disk, in memory that does not grow with the rows."""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np

#: Hashes that are compared in memory at a time, 16 bytes each.
IDS_SORTED_TOGETHER = 1 << 22


def repeated(ids: Iterable[tuple[int, str]], at_once: int = IDS_SORTED_TOGETHER) -> np.ndarray:
    """Sorted row numbers of all but the first row of each id, int64; `ids` are (row number, id) in order of rows.

    Ids are compared by 64 bits of BLAKE2: of 10^8 different ones, two are taken for one with a probability of 3 in 10,000.
    """
    with tempfile.TemporaryFile() as file:
        count = 0
        for block in _blocks(ids, at_once):
            count += len(block)
            file.write(block.tobytes())
        groups = max(1, -(-count // at_once))
        found = []
        for group in range(groups):  # the ids of one group are in no other
            file.seek(0)
            mine = []
            while chunk := file.read(16 * at_once):
                block = np.frombuffer(chunk, dtype=np.uint64).reshape(-1, 2)
                mine.append(block[block[:, 0] % np.uint64(groups) == group])
            hashes, rows = np.concatenate(mine).T if mine else np.zeros((2, 0), np.uint64)
            order = np.argsort(hashes, kind="stable")  # rows of one id stay in order
            again = np.flatnonzero(hashes[order][1:] == hashes[order][:-1]) + 1
            found.append(rows[order[again]].astype(np.int64))
        return np.sort(np.concatenate(found))


def _blocks(ids: Iterable[tuple[int, str]], at_once: int) -> Iterator[np.ndarray]:
    """(hash, row) pairs, (n, 2) uint64."""
    block: list[tuple[int, int]] = []
    for row, own in ids:
        digest = hashlib.blake2b(own.encode(errors="surrogatepass"), digest_size=8).digest()
        block.append((int.from_bytes(digest, "little"), row))
        if len(block) == at_once:
            yield np.array(block, dtype=np.uint64)
            block = []
    if block:
        yield np.array(block, dtype=np.uint64)
