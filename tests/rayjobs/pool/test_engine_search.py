"""What a worker of `assign` makes of rows, in this process."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ortho_core.errors import UserError
from ortho_core.estep.candidates import candidate_seeds
from ortho_core.noise.seeded import noise_seed, seeded_normal
from ortho_core.records.assignments import Assignments
from rayjobs.assign.config import AssignJob
from rayjobs.assign.job import run
from tests.rayjobs.same import assert_same, rows

ROWS = 10


def assign(pairs, model, out, **options):
    return run(AssignJob(pairs=pairs, model=model, out=out, steps=2, rows_per_shard=4, slots=4, workers=0, **options))


@pytest.fixture(scope="module")
def records(digits):
    """Ten rows: id, prompt, image bytes."""
    lines = [json.loads(line) for line in (digits / "pairs.jsonl").read_text().splitlines()[:ROWS]]
    return [(f"id-{i}", row["prompt"], (digits / row["image"]).read_bytes()) for i, row in enumerate(lines)]


@pytest.fixture(scope="module")
def as_json_lines(records, tiny_turbo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lines")
    with (folder / "pairs.jsonl").open("w") as stream:
        for key, prompt, image in records:
            (folder / f"{key}.png").write_bytes(image)
            stream.write(json.dumps({"key": key, "prompt": prompt, "image": f"{key}.png"}) + "\n")
    assert assign(folder, tiny_turbo, folder / "out", id_field="key") == 0
    return rows(folder / "out")


def parquet(folder, records):
    key, prompt, image = zip(*records, strict=True)
    pq.write_table(pa.table({"key": key, "prompt": prompt, "image": image}), folder / "a.parquet", row_group_size=3)
    return "key"


def web_dataset(folder, records):
    with tarfile.open(folder / "a.tar", "w") as archive:
        for key, prompt, image in records:
            for name, content in ((f"{key}.png", image), (f"{key}.txt", prompt.encode())):
                about = tarfile.TarInfo(name)
                about.size = len(content)
                archive.addfile(about, io.BytesIO(content))
    return "__key__"


@pytest.mark.parametrize("write", [parquet, web_dataset])
def test_the_format_of_a_pair_set_changes_nothing_but_where_images_are(
    write, records, as_json_lines, tiny_turbo, tmp_path
):
    folder = tmp_path / "pairs"
    folder.mkdir()
    key = write(folder, records)
    assert assign(folder, tiny_turbo, tmp_path / "out", id_field=key) == 0
    found = rows(tmp_path / "out")
    assert all(row["image"].startswith("a.") and "#" in row["image"] for row in found.values())
    for name, row in found.items():
        row |= {"image": as_json_lines[name]["image"]}
    assert_same(found, as_json_lines, loss=0, skew=0)


def test_noise_that_is_kept_itself_is_that_which_its_record_rebuilds(records, tiny_turbo, generator, tmp_path):
    import torch

    from ortho_core.records.assignments import rebuild_noise

    (tmp_path / "pairs").mkdir()
    parquet(tmp_path / "pairs", records)
    assert assign(tmp_path / "pairs", tiny_turbo, tmp_path / "out", store="noise") == 0
    assignments = Assignments(tmp_path / "out")
    kept = assignments.rows(range(ROWS), ["noise_seed", "skew", "noise"])
    skew = torch.tensor([row["skew"].tolist() for row in kept])
    rebuilt = rebuild_noise([row["noise_seed"] for row in kept], skew, 2, generator.latent_shape)
    assert torch.equal(assignments.noise(range(ROWS), generator.latent_shape), rebuilt.half().float())


def test_the_record_has_the_seed_of_the_best_candidate_and_a_warm_start_keeps_it(
    records, tiny_turbo, generator, tmp_path
):
    import torch

    (tmp_path / "pairs").mkdir()
    settings = {"pairs": tmp_path / "pairs", "model": tiny_turbo, "id_field": parquet(tmp_path / "pairs", records)}
    assert assign(out=tmp_path / "out", candidates=4, seed=3, **settings) == 0
    assignments, found = Assignments(tmp_path / "out"), rows(tmp_path / "out")
    condition = generator.encode_prompts([row["prompt"] for row in found.values()])
    targets = assignments.targets(range(ROWS), generator.latent_shape)
    drawn = [candidate_seeds(noise_seed(3, name), 4) for name in found]
    with torch.no_grad():
        losses = torch.stack(
            [
                (generator.denoise(seeded_normal(list(seeds), generator.latent_shape), condition) - targets)
                .square()
                .mean((1, 2, 3))
                for seeds in zip(*drawn, strict=True)
            ]
        )
    best = losses.argmin(0).tolist()
    assert [row["noise_seed"] for row in found.values()] == [seeds[k] for seeds, k in zip(drawn, best, strict=True)]
    # What a reader rebuilds from the record is the winner's noise, rotated.
    latents = generator.denoise(assignments.noise(range(ROWS), generator.latent_shape), condition)
    rebuilt = (latents - targets).square().mean((1, 2, 3)).tolist()
    assert [row["loss"] for row in found.values()] == pytest.approx(rebuilt, rel=1e-3)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["evaluations"], summary["candidate_forwards"]) == (2 * ROWS, 4 * ROWS)
    for name, candidates in (("same", 4), ("one", 1)):
        warm = {"candidates": candidates, "seed": 3, "warm_start": tmp_path / "out"}
        assert assign(out=tmp_path / name, **settings, **warm) == 0
        again = rows(tmp_path / name)
        assert [row["noise_seed"] for row in again.values()] == [row["noise_seed"] for row in found.values()]
        assert [row["initial_loss"] for row in again.values()] == pytest.approx(rebuilt, rel=1e-3)
        assert json.loads((tmp_path / name / "summary.json").read_text())["candidate_forwards"] == 0
    with pytest.raises(UserError, match=r"does not fit this run: candidates was 4, now 8$"):
        assign(out=tmp_path / "other", candidates=8, seed=3, warm_start=tmp_path / "out", **settings)
