"""The assignment record: which noise belongs to which image, in Parquet, small and checked.

A record stores the noise as its seed, its skew parameters (m float32, 480 bytes at C = 4, p = 2) and a checksum of the rebuilt
noise. Noise that is not a rotation (regions 0) is stored in full, as is every noise with `--store noise`. A part file is complete
on its own: its schema metadata has the failed rows and the run's fingerprint.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float
from torch import Tensor

from ortho_core.errors import UserError
from ortho_core.framing.frame import Frame, Size
from ortho_core.framing.image_size import text_of
from ortho_core.noise.rotation import block_dimension, rotate, skew_parameters
from ortho_core.noise.seeded import seeded_normal
from ortho_core.records.parts import FRAME_COLUMNS, PART_FOOTERS_AT_ONCE, read_footers, read_part
from ortho_core.records.plan import ASSIGNMENT_PLANS, PLAN_FILE, AssignmentPlan, RewardPlan, read_plan
from ortho_core.records.runs import Runs
from ortho_core.storage.open import open_store
from ortho_core.storage.planned import check_planned
from ortho_core.storage.store import one_line

#: The linear algebra of two machines differs by far less; another seed, skew or shape differs by more.
CHECKSUM_TOLERANCE = 1e-4

#: Bytes of parts that a reader caches.
CACHE_BYTES = 2 << 30

#: Largest number of rows for the mean of the noise. Its standard error is then 1/64 of the deviation of one map.
MEAN_OF = 4096

#: Noise maps that are rebuilt together for the mean.
REBUILT_TOGETHER = 256


class Start(NamedTuple):
    """The start of a search from an earlier result: the seed of the base noise, and parameters (m,) around that noise."""

    seed: int
    parameters: Tensor


def rebuild_noise(
    seeds: Sequence[int],
    skew: Float[Tensor, "B ggm"],
    patch_size: int,
    latent_shape: tuple[int, int, int],
    regions: int = 1,
) -> Float[Tensor, "B C H W"]:
    """Qε from its record, computed in float64 and returned in float32; machines differ only by rounding."""
    base = seeded_normal(list(seeds), latent_shape)
    return rotate(base.double(), skew.double(), patch_size, regions).float()


def noise_checksum(noise: Float[Tensor, "B C H W"]) -> Float[np.ndarray, " B"]:
    """⟨noise, w⟩/√n with w a fixed standard normal vector, in float64. Any change of the noise changes this number.

    It is a number and not a hash, because rounding on another machine must not count as damage. The page checksums of the
    Parquet file detect damaged bytes.
    """
    flat = noise.flatten(1).double().numpy()
    weights = seeded_normal([0], (flat.shape[1],))[0].double().numpy()
    # Not a matrix product: its rounding depends on the batch.
    return np.asarray((flat * weights).sum(1) / np.sqrt(flat.shape[1]), dtype=np.float64)


def frame_of(row: Mapping[str, Any]) -> Frame | None:
    """The frame in a record; None if it has none."""
    numbers = [int(row[name]) for name in FRAME_COLUMNS if row.get(name) is not None]
    return Frame(*numbers) if len(numbers) == len(FRAME_COLUMNS) else None


def shape_at(frame: Frame | None, latent_shape: tuple[int, int, int], image_size: Size | None) -> tuple[int, int, int]:
    """The shape of a latent or noise map for a frame, if it is `latent_shape` for images of `image_size` (Y, X)."""
    if frame is None or image_size is None or frame.size == image_size:
        return latent_shape
    C, H, _ = latent_shape
    factor = image_size[0] // H
    return C, frame.height // factor, frame.width // factor


class Assignments:
    """The committed assignments of one run, addressed by row number, for training.

    Parts are read when their rows are requested. At most `cache_bytes` of them stay in memory; the cache is not pickled. Raises
    UserError if the folder (a path or URL) has no assignments, or not all parts of its plan.
    """

    def __init__(self, folder: str | Path, cache_bytes: int = CACHE_BYTES) -> None:
        self.folder = open_store(folder)
        self.location = self.folder.location
        self.plan = self._read_plan()
        self.shards = self.plan.parts_by_shard(self.folder.names())
        missing = [i for i, parts in enumerate(self.shards) if not parts]
        if missing:
            raise UserError(
                f"the assignments in {folder} are not complete: {len(missing)} of {len(self.shards)} parts are missing "
                f"({self.plan.part_name(missing[0])}, ...); run the same `ortho {self.plan.verb}` again to finish them"
            )
        self.parts = [name for parts in self.shards for name in parts]
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[str, pa.Table] = OrderedDict()

    def _read_plan(self) -> AssignmentPlan:
        try:
            return read_plan(self.folder, *ASSIGNMENT_PLANS)
        except FileNotFoundError:
            raise UserError(
                f"{self.location} holds no assignments: {self.location}/{PLAN_FILE} does not exist (make them with "
                "`ortho assign`)"
            ) from None
        except OSError as error:
            raise UserError(f"cannot read the assignments in {self.location}: {one_line(error)}") from error
        except UserError as error:
            raise UserError(f"{error}: assign again") from error

    def planned_as(self, option: str, fingerprint: str | None) -> "Assignments":
        """These assignments, which `option` names. Raises UserError if their run's fingerprint is not the planned one."""
        name = f"the content of {option} {self.location}"
        check_planned({name: fingerprint or ""}, {name: self.plan.run_fingerprint})
        return self

    @property
    def of_rewards(self) -> bool:
        """Whether the noise maximises rewards; then there are no images to which it was matched."""
        return isinstance(self.plan, RewardPlan)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_cache": OrderedDict()}

    @cached_property
    def starts(self) -> np.ndarray:
        """Number of the first row of each part, then the total number of rows. Raises UserError if there are no rows."""
        return self._counted[0]

    def by_size(self, own_size: Size) -> dict[Size, Runs]:
        """The rows of each size (Y, X) of images that has rows; `own_size` is the size of images without another one."""
        starts, counted = self._counted
        sizes = self.plan.framing(own_size).sizes
        if len(sizes) == 1:
            return {sizes[0]: Runs(starts[:-1], np.diff(starts))}
        counts = np.array([[each.get(text_of(size), 0) for size in sizes] for each in counted])
        firsts = starts[:-1, None] + np.cumsum(counts, 1) - counts
        runs = {size: Runs(firsts[:, k], counts[:, k]) for k, size in enumerate(sizes)}
        return {size: each for size, each in runs.items() if len(each)}

    @cached_property
    def _counted(self) -> tuple[np.ndarray, list[dict[str, int]]]:
        footers = read_footers(self.folder, self.parts)
        starts = np.cumsum([0, *(footer.rows for footer in footers)])
        if not starts[-1]:
            raise UserError(f"{self.location} holds no assigned rows: all were quarantined, see failures.jsonl in it")
        return starts, [dict(footer.about.sizes) for footer in footers]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def rows(self, index: Sequence[int], columns: list[str]) -> list[dict[str, Any]]:
        """The rows at `index`, in that order, as dictionaries; list columns are float32 arrays.

        Raises UserError if a part is damaged.
        """
        rows = []
        for i in index:
            part = int(np.searchsorted(self.starts, i, side="right")) - 1
            table, row = self._part(self.parts[part]), int(i - self.starts[part])
            rows.append({c: self._value(table[c], row) if c in table.column_names else None for c in columns})
        return rows

    def frames(self, index: Sequence[int]) -> list[Frame | None]:
        """The frame of the image of each row; None for records without one, of earlier versions or of imported noise."""
        return [frame_of(row) for row in self.rows(index, list(FRAME_COLUMNS))]

    def part_rows(self, part: str, rows: Sequence[int], columns: list[str]) -> list[dict[str, Any]]:
        """Rows of a part by their numbers in it. Reads only these columns, uncached. Raises UserError if it is damaged.

        A column that the part does not have is None.
        """
        table = read_part(self.folder, part, columns, self.plan.verb)
        there = set(table.column_names)
        return [{c: self._value(table[c], row) if c in there else None for c in columns} for row in rows]

    @staticmethod
    def _value(column: pa.ChunkedArray, row: int) -> object:
        scalar = column[row]
        if pa.types.is_list(column.type) and scalar.is_valid:
            return scalar.values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        return scalar.as_py()

    def _part(self, name: str) -> pa.Table:
        if name not in self._cache:
            self._cache[name] = read_part(self.folder, name)
            while sum(t.nbytes for t in self._cache.values()) > self.cache_bytes and len(self._cache) > 1:
                self._cache.popitem(last=False)
        self._cache.move_to_end(name)
        return self._cache[name]

    @property
    def noise_columns(self) -> list[str]:
        """The columns that are needed to rebuild the noise of a record."""
        return ["sample_id", "noise_seed", "noise" if self.plan.noise.is_kept else "skew", "noise_checksum"]

    def noise(self, index: Sequence[int], latent_shape: tuple[int, int, int]) -> Float[Tensor, "B C H W"]:
        """Qε of the rows at `index`. Raises UserError if it does not fit the shape or its checksum."""
        return self.noise_of(self.rows(index, self.noise_columns), latent_shape)

    def noise_of(
        self, rows: Sequence[Mapping[str, Any]], latent_shape: tuple[int, int, int]
    ) -> Float[Tensor, "B C H W"]:
        """Qε of records that have the `noise_columns`. Raises UserError as `noise` does."""
        settings = self.plan.noise
        column = "noise" if settings.is_kept else "skew"
        m = int(np.prod(latent_shape)) if settings.is_kept else self._skew_parameters(latent_shape)
        for row in rows:
            if len(row[column]) != m:
                raise UserError(
                    f"the assignments in {self.location} have {len(row[column])} numbers of {column} per image; a model "
                    f"with latent {latent_shape} and patch size {settings.patch_size} needs {m}: they were made for another model"
                )
        kept = torch.from_numpy(np.stack([row[column] for row in rows]))
        if settings.is_kept:
            noise = kept.reshape(-1, *latent_shape)
        else:
            seeds = [row["noise_seed"] for row in rows]
            noise = rebuild_noise(seeds, kept, settings.patch_size, latent_shape, settings.regions)
        recorded = np.array([row["noise_checksum"] for row in rows])
        wrong = np.flatnonzero(np.abs(noise_checksum(noise) - recorded) > CHECKSUM_TOLERANCE)
        if len(wrong):
            names = [rows[i]["sample_id"] for i in wrong[:3]]
            raise UserError(f"{self.location}: the rebuilt noise of {names} does not match its checksum; assign again")
        return noise

    def mean_noise(
        self, latent_shape: tuple[int, int, int], most: int = MEAN_OF, among: Runs | None = None
    ) -> Float[Tensor, "C H W"]:
        """The mean of the assigned noise over all rows, or over those of them that have this shape (`among`).

        Of more than `most` rows, it is the mean of `most` evenly spaced ones.
        """
        index = (among or Runs(np.array([0]), np.array([len(self)]))).spread(most)
        count = len(index)
        total = torch.zeros(latent_shape, dtype=torch.float64)
        for start in range(0, count, REBUILT_TOGETHER):
            total += self.noise(index[start : start + REBUILT_TOGETHER], latent_shape).double().sum(0)
        return (total / count).float()

    def row_bytes(self, latent_shape: tuple[int, int, int], target_shape: tuple[int, int, int]) -> int:
        """Estimated bytes of a row in memory."""
        noise = int(np.prod(latent_shape)) * self.plan.noise.is_kept
        skew = 0 if self.plan.noise.is_free else self._skew_parameters(latent_shape)
        return 512 + 4 * (noise + skew + int(np.prod(target_shape)) * self.plan.noise.store_latents)

    def _skew_parameters(self, latent_shape: tuple[int, int, int]) -> int:
        """The length of a record's `skew`, over all regions."""
        settings = self.plan.noise
        return settings.regions**2 * skew_parameters(block_dimension(latent_shape, settings.patch_size))

    def base_noise(self, index: Sequence[int], latent_shape: tuple[int, int, int]) -> Float[Tensor, "B C H W"]:
        """ε of the rows at `index`: the base noise of their search."""
        return seeded_normal([row["noise_seed"] for row in self.rows(index, ["noise_seed"])], latent_shape)

    def found(self, shard: int, latent_shape: tuple[int, int, int], image_size: Size | None = None) -> dict[str, Start]:
        """The results of a shard's searches by sample id, as starts of another search.

        `latent_shape` is that of the noise for images of `image_size` (Y, X); images of other sizes have other shapes.

        Reads only the needed columns, without the cache: each shard is requested once, from several threads.
        """
        is_free = self.plan.noise.is_free
        column = "noise" if is_free else "skew"
        kept: dict[str, Start] = {}
        for name in self.shards[shard]:
            table = read_part(self.folder, name, ["sample_id", "noise_seed", column, *FRAME_COLUMNS])
            for row in table.to_pylist():
                value = torch.tensor(row[column], dtype=torch.float32)
                if is_free:
                    shape = shape_at(frame_of(row), latent_shape, image_size)
                    value -= seeded_normal([row["noise_seed"]], shape).flatten()
                kept[row["sample_id"]] = Start(row["noise_seed"], value)
        return kept

    def prompts(self) -> set[str]:
        """All different prompts; reads one column of every part."""
        return set().union(*self.prompts_by_part())

    def prompts_by_part(self) -> Iterator[list[str]]:
        """The different prompts of each part; reads one column of it. Only a few parts' prompts are in memory at once."""

        def of_part(name: str) -> list[str]:
            unique: list[str] = read_part(self.folder, name, ["prompt"])["prompt"].unique().to_pylist()
            return unique

        with ThreadPoolExecutor(PART_FOOTERS_AT_ONCE) as pool:
            for start in range(0, len(self.parts), PART_FOOTERS_AT_ONCE):
                yield from pool.map(of_part, self.parts[start : start + PART_FOOTERS_AT_ONCE])

    def with_pixels(self, wanted: Collection[int]) -> set[int]:
        """The subset of the image hashes in `wanted` (`Pair.pixels`) that rows have; reads one column of every part."""

        def of_part(name: str) -> set[int]:
            column = read_part(self.folder, name, ["pixels"])["pixels"]
            return set(column.filter(pc.is_in(column, values)).to_pylist())

        values = pa.array(sorted(wanted), pa.uint64())
        with ThreadPoolExecutor(PART_FOOTERS_AT_ONCE) as pool:
            return set().union(*pool.map(of_part, self.parts))

    def targets(self, index: Sequence[int], target_shape: tuple[int, int, int]) -> Float[Tensor, "B c h w"]:
        """The stored target latents of the rows at `index`."""
        flat = np.stack([row["target_latent"] for row in self.rows(index, ["target_latent"])])
        return torch.from_numpy(flat.reshape(len(index), *target_shape))
