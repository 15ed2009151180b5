"""Computes the figures, the table and the pictures of an evaluation from its part files.

Parts are read shard by shard. In memory are the figures and features of one model at a time, and the features of the targets.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ortho_core.errors import RunFailed
from ortho_core.evaluation import statistics
from ortho_core.evaluation.metrics import REWARD, Estimate, Metrics, cell, known_metrics, metric
from ortho_core.evaluation.rows import ROW_FIGURES
from ortho_core.evaluation.samples import from_png, laplacian_energy, rms_distance
from ortho_core.framing.image_size import text_of
from ortho_core.pairs.rows import Failure
from ortho_core.pictures import padded, save_png
from ortho_core.records.assignments import Assignments
from ortho_core.records.parts import FRAME_COLUMNS, read_footer, read_footers, read_part
from ortho_core.records.plan import read_plan
from ortho_core.storage.open import open_store
from ortho_core.storage.store import Store
from rayjobs.evaluate.plan import PARTS, EvaluationPlan
from rayjobs.pool.ledger import Ledger
from rayjobs.verb.console import aligned

#: The figures of each model's image of each row.
ROW_TABLE = "evaluation.parquet"
#: Rows whose pictures are shown.
ROWS_SHOWN = 64
#: Columns of `evaluation.parquet`: the Laplacian energy of each row's sample and of its target. Sharpness is their ratio.
SAMPLE_ENERGY, TARGET_ENERGY = "sample_energy", "target_energy"


class TooFewJudged(RunFailed):
    """Too few rows were judged for statistics."""


class Parts:
    """The published parts by model and shard, and the rows that every model has judged."""

    def __init__(self, ledger: Ledger[EvaluationPlan]) -> None:
        """Raises RunFailed for a part that is missing, UserError for one that is damaged."""
        self.folder, self.models = ledger.folder, list(ledger.plan.models)
        names = [name for (name,) in ledger.parts()]
        self.shards = len(names) // len(self.models)
        self.names = {m: names[i * self.shards : (i + 1) * self.shards] for i, m in enumerate(self.models)}
        #: For each shard, the ids of the rows that are in every model's part, in order.
        self.judged: list[list[str]] = []
        for s in range(self.shards):
            columns = [self._read(model, s, ["sample_id"])["sample_id"].to_pylist() for model in self.models]
            others = set(columns[0]).intersection(*columns[1:])
            self.judged.append([name for name in columns[0] if name in others])
        self.count = sum(len(ids) for ids in self.judged)

    @staticmethod
    def of(evaluation: Path) -> "Parts":
        """The parts of a finished evaluation. Raises UserError if its plan cannot be read."""
        folder = open_store(evaluation)
        return Parts(Ledger(folder.child(PARTS), read_plan(folder, EvaluationPlan)))

    def _read(self, model: str, shard: int, columns: list[str]) -> pa.Table:
        table = read_part(self.folder, self.names[model][shard], columns, "evaluate")
        for name in columns:  # parts of earlier versions, all of whose images have one size, do not have these
            if name in FRAME_COLUMNS and name not in table.column_names:
                table = table.append_column(name, pa.array([0] * len(table), pa.int32()))
        return table

    def tables(self, model: str, columns: list[str]) -> Iterator[pa.Table]:
        """The judged rows of a model, shard by shard, in an order that is the same for each model."""
        for s, ids in enumerate(self.judged):
            table = self._read(model, s, [*dict.fromkeys(["sample_id", *columns])])
            place = {name: i for i, name in enumerate(table["sample_id"].to_pylist())}
            yield table.take(pa.array([place[name] for name in ids], pa.int64()))

    def matrix(self, model: str, column: str) -> np.ndarray:
        """A list column as (n, D) float32."""
        return np.concatenate([_matrix(table[column]) for table in self.tables(model, [column]) if len(table)])

    def failures(self) -> dict[str, dict[int, Failure]]:
        """For each model, the rows that could not be judged, by row number."""
        footers = {m: read_footers(self.folder, names) for m, names in self.names.items()}
        return {m: {f.row: f for footer in each for f in footer.about.failures} for m, each in footers.items()}

    def spread(self, model: str) -> tuple[float, ...] | None:
        """For each diversity prompt, the mean distance between its samples; None if the first shard has no rows."""
        return read_footer(self.folder, self.names[model][0]).about.diversity


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    values = column.combine_chunks()
    return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), -1)


def write_failures(parts: Parts, folder: Store) -> int:
    """Write each row that could not be judged with some model into `failures.jsonl`, once; returns their number."""
    by_row: dict[int, Failure] = {}
    for failures in parts.failures().values():
        by_row = failures | by_row
    folder.replace("failures.jsonl", "".join(json.dumps(vars(by_row[row])) + "\n" for row in sorted(by_row)).encode())
    return len(by_row)


def check_judged(parts: Parts, rows: int, quarantined: int) -> None:
    """Raises TooFewJudged if the rows are too few for statistics."""
    if parts.count + quarantined != rows:
        raise RuntimeError(f"{parts.count} judged + {quarantined} quarantined is not {rows} rows")
    if parts.count < statistics.FEWEST_ROWS:
        failed = ", ".join(f"{name} {len(failures)}" for name, failures in parts.failures().items())
        raise TooFewJudged(
            f"{parts.count} of {rows} held-out rows were judged with every model; figures need {statistics.FEWEST_ROWS}; "
            f"rows that failed, by model: {failed}; see failures.jsonl"
        )


def count_in_training(parts: Parts, assignments: str) -> int:
    """How many of the judged images are in the assignments too: the same pixels at the models' size.

    Raises UserError if the assignments cannot be read.
    """
    judged = [n for t in parts.tables(parts.models[0], ["pixels"]) for n in t["pixels"].to_pylist() if n is not None]
    trained = Assignments(assignments).with_pixels(judged)
    return sum(pixels in trained for pixels in judged)


def judge_all(
    parts: Parts, out: Store, seed: int, own_cmmd: bool, several_sizes: bool = False
) -> tuple[dict[str, dict[str, Estimate]], dict[str, dict[str, dict[str, Estimate]]]]:
    """Each model's figures, and those by the size of the images; also writes `evaluation.parquet`.

    `own_cmmd`: CMMD has another feature model.
    """
    base, weights = parts.models[0], statistics.resamples(parts.count, seed)
    kinds = ["features", "cmmd_features"] if own_cmmd else ["features"]
    sets = {of: [parts.matrix(base, f"{of}_{kind}") for kind in kinds] for of in ("target", "other")}
    energies = [energies_of(pictures(table["target"])) for table in parts.tables(base, ["target"])]
    metrics: dict[str, dict[str, Estimate]] = {}
    sizes: dict[str, dict[str, dict[str, Estimate]]] = {}
    with tempfile.TemporaryFile() as file, ExitStack() as stack:
        writer = None
        for model in parts.models:
            columns: dict[str, list[np.ndarray]] = {}
            for table in per_image(parts, model, energies):
                if writer is None:
                    writer = stack.enter_context(pq.ParquetWriter(file, table.schema, compression="zstd"))
                writer.write_table(table)
                for name in table.column_names:
                    if pa.types.is_floating(table.schema.field(name).type) or name in ("height", "width"):
                        columns.setdefault(name, []).append(table[name].to_numpy())
            values = {name: np.concatenate(chunks) for name, chunks in columns.items()}
            heights, widths = values.pop("height"), values.pop("width")
            each = by_size(values, heights, widths, seed) if several_sizes else {}
            for size, figures in each.items():
                sizes.setdefault(size, {})[model] = figures
            figures = {k: statistics.mean_figure(v, weights) for k, v in values.items() if not np.isnan(v).any()}
            figures |= fidelity([parts.matrix(model, kind) for kind in kinds], sets, weights)
            if sharpness := statistics.ratio_figure(values[SAMPLE_ENERGY], values[TARGET_ENERGY], weights):
                figures["sharpness"] = sharpness
            if (spread := parts.spread(model)) is not None:
                over = statistics.resamples(len(spread), seed)
                figures["diversity"] = statistics.mean_figure(np.array(spread), over)
            metrics[model] = {name: figures[name] for name in known_metrics({model: figures})}
        stack.close()
        out.replace_from(ROW_TABLE, file)
    return metrics, sizes


def by_size(
    values: Mapping[str, np.ndarray], heights: np.ndarray, widths: np.ndarray, seed: int
) -> dict[str, dict[str, Estimate]]:
    """The means of a model's figures over the images of each size that has enough rows; empty if all have one size."""
    sizes = np.stack([heights, widths], 1)
    found: dict[str, dict[str, Estimate]] = {}
    different = np.unique(sizes, axis=0)
    for size in different if len(different) > 1 else ():
        mine = (sizes == size).all(1)
        if mine.sum() >= statistics.FEWEST_ROWS:
            weights = statistics.resamples(int(mine.sum()), seed)
            rows = {name: value[mine] for name, value in values.items() if not name.endswith("_energy")}
            means = {k: statistics.mean_figure(v, weights) for k, v in rows.items() if not np.isnan(v).any()}
            found[text_of((int(size[0]), int(size[1])))] = means
    return found


def fidelity(
    samples: list[np.ndarray], sets: Mapping[str, list[np.ndarray]], weights: np.ndarray
) -> dict[str, Estimate]:
    """Distances of a model's samples from the targets and from the base model's samples.

    Each list holds the features (n, D), then those of CMMD if CMMD has another feature model.
    """
    figures = {}
    for of, suffix in (("target", ""), ("other", "_base")):
        figures[f"kid{suffix}"] = statistics.kid(samples[0], sets[of][0], weights)
        figures[f"fid{suffix}"] = statistics.fid(samples[0], sets[of][0], weights)
        figures[f"cmmd{suffix}"] = statistics.cmmd(samples[-1], sets[of][-1], weights)
    figures["precision"], figures["recall"] = statistics.precision_recall(samples[0], sets["target"][0], weights)
    return figures


def pictures(column: pa.ChunkedArray) -> list[torch.Tensor]:
    """The images (3, Y, X) uint8 in a column of PNGs."""
    return [from_png(content) for content in column.to_pylist()]


def energies_of(images: Sequence[torch.Tensor]) -> pa.Array:
    return pa.array([laplacian_energy(image) for image in images], pa.float32())


def per_image(parts: Parts, model: str, target_energies: Sequence[pa.Array]) -> Iterator[pa.Table]:
    """The rows of `evaluation.parquet` of one model, shard by shard; a figure that a row does not have is null.

    `target_energies` are the Laplacian energies of each shard's targets; only the base model's parts have the targets.
    """
    base = parts.models[0]
    mine = parts.tables(model, ["prompt", "image", "height", "width", "evaluations", *ROW_FIGURES, "rewards", "sample"])
    for table, reference, energies in zip(mine, parts.tables(base, ["sample"]), target_energies, strict=True):
        if not len(table):
            continue
        n, samples = len(table), pictures(table["sample"])
        content = {"model": pa.array([model] * n), "sample_id": table["sample_id"], "prompt": table["prompt"]}
        content |= {name: table[name] for name in ("image", "height", "width")}
        content |= {name: table[name] for name in ROW_FIGURES}
        apart = pa.nulls(n, pa.float32())
        if model != base:
            others = pictures(reference["sample"])
            apart = pa.array(distances(samples, others), pa.float32())
        content |= {"drift": apart, SAMPLE_ENERGY: energies_of(samples), TARGET_ENERGY: energies}
        rewards = [dict(row) for row in table["rewards"].to_pylist()]
        content |= {REWARD + name: pa.array([r[name] for r in rewards], pa.float32()) for name in rewards[0]}
        yield pa.table({**content, "evaluations": table["evaluations"]})


def distances(images: list[torch.Tensor], others: list[torch.Tensor]) -> np.ndarray:
    """`rms_distance` of each image (3, Y, X) uint8 from its partner; pairs of images may have different sizes."""
    found = np.zeros(len(images))
    shapes = [image.shape for image in images]
    for shape in dict.fromkeys(shapes):
        rows = [k for k, each in enumerate(shapes) if each == shape]
        found[rows] = rms_distance(torch.stack([images[k] for k in rows]), torch.stack([others[k] for k in rows]))
    return found


def draw(parts: Parts, out: Path, size: tuple[int, int]) -> None:
    """Write contact sheets of the first rows: the targets; each model's closest images, samples, samples at another noise.

    `size` (Y, X) is that of a cell; a smaller image is centred in it.
    """
    out.mkdir(exist_ok=True)
    for model in parts.models:
        columns = ["closest", "sample", "other", *(["target"] if model == parts.models[0] else [])]
        shown: dict[str, list[bytes]] = {name: [] for name in columns}
        for table in parts.tables(model, columns):
            for name in columns:
                shown[name] += table[name][: ROWS_SHOWN - len(shown[name])].to_pylist()
            if len(shown["sample"]) == ROWS_SHOWN:
                break
        stems = {
            "closest": f"{model}-closest",
            "sample": f"{model}-samples",
            "other": f"{model}-others",
            "target": "targets",
        }
        for name, pictures in shown.items():
            save_png(padded([from_png(picture) for picture in pictures], size), out / f"{stems[name]}.png")


def table_of(metrics: Metrics) -> str:
    """The figures as an aligned text table, one line per figure and one column per model."""
    rows = [["", *metrics]]
    for name in known_metrics(metrics):
        about = metric(name)
        rows.append([f"{about.title} {about.arrow}".rstrip(), *(cell(figures, name) for figures in metrics.values())])
    return aligned(rows)
