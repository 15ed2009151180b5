"""Find rows whose id an earlier row has, by hashes on disk; memory does not grow with the number of rows."""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np

#: Number of hashes that are compared in memory at once, 16 bytes each.
IDS_SORTED_TOGETHER = 1 << 22


def repeated(ids: Iterable[tuple[int, str]], at_once: int = IDS_SORTED_TOGETHER) -> np.ndarray:
    """Sorted row numbers, int64, of all rows but the first of each id; `ids` are (row number, id) in order of rows.

    Ids are compared by 64 bits of BLAKE2: the probability of any collision among 10^8 different ids is 3 in 10,000.
    """
    with tempfile.TemporaryFile() as file:
        count = 0
        for block in _blocks(ids, at_once):
            count += len(block)
            file.write(block.tobytes())
        groups = max(1, -(-count // at_once))
        repeats = []
        for group in range(groups):  # equal ids are in the same group
            file.seek(0)
            parts = []
            while chunk := file.read(16 * at_once):
                block = np.frombuffer(chunk, dtype=np.uint64).reshape(-1, 2)
                parts.append(block[block[:, 0] % np.uint64(groups) == group])
            hashes, rows = np.concatenate(parts).T if parts else np.zeros((2, 0), np.uint64)
            order = np.argsort(hashes, kind="stable")  # rows of one id stay in order
            again = np.flatnonzero(hashes[order][1:] == hashes[order][:-1]) + 1
            repeats.append(rows[order[again]].astype(np.int64))
        return np.sort(np.concatenate(repeats))


def _blocks(ids: Iterable[tuple[int, str]], at_once: int) -> Iterator[np.ndarray]:
    """(hash, row) pairs, (n, 2) uint64."""
    block: list[tuple[int, int]] = []
    for row, sample_id in ids:
        digest = hashlib.blake2b(sample_id.encode(errors="surrogatepass"), digest_size=8).digest()
        block.append((int.from_bytes(digest, "little"), row))
        if len(block) == at_once:
            yield np.array(block, dtype=np.uint64)
            block = []
    if block:
        yield np.array(block, dtype=np.uint64)
