import json

import numpy as np
import pytest
import torch

from ortho_core.errors import UserError
from ortho_core.noise.rotation import rotate
from ortho_core.noise.seeded import seeded_normal
from ortho_core.pairs.rows import Failure
from ortho_core.records.assignments import Assignments, noise_checksum, rebuild_noise
from ortho_core.records.parts import FORMAT, encode_part, part_name, read_about
from ortho_core.storage.open import open_store

SHAPE = (4, 8, 8)
CONFIG = {"patch_size": 2, "regions": 1, "transform": "orthogonal", "store": "parameters", "store_latents": True}


def record(i: int, patch_size: int = 2) -> dict:
    d = 4 * patch_size**2
    skew = 0.1 * torch.randn(1, d * (d - 1) // 2, generator=torch.Generator().manual_seed(i))
    return {
        "sample_id": f"{i:06d}_x",
        "prompt": f"prompt {i}",
        "image": f"{i}.png",
        "noise_seed": 1000 + i,
        "patch_size": patch_size,
        "regions": 1,
        "skew": skew[0].numpy(),
        "noise_checksum": float(noise_checksum(rebuild_noise([1000 + i], skew, patch_size, SHAPE))[0]),
        "initial_loss": 2.0,
        "loss": 1.0,
        "latent_loss": 1.0,
        "pixel_l1": 0.0,
        "drift": 0.0,
        "prior": 0.0,
        "evaluations": 10,
        "model_fingerprint": "m",
        "config_fingerprint": "c",
        "target_latent": torch.full((256,), float(i)).numpy(),
    }


def write_part(folder, shard, rows, failures=(), revision=0, store="parameters"):
    content = encode_part(rows, list(failures), {"shard": shard, "revision": revision}, store)
    (folder / part_name(shard, "f", revision)).write_bytes(content)


@pytest.fixture
def folder(tmp_path):
    """Two committed parts of three rows."""
    (tmp_path / "plan.json").write_text(
        json.dumps({"format": FORMAT, "run_fingerprint": "f", "shards": 2, "config": CONFIG})
    )
    for shard in range(2):
        rows = [record(3 * shard + i) for i in range(3)]
        failures = [Failure("x", 9, "missing-image", "gone")] * shard
        write_part(tmp_path, shard, rows, failures)
    return tmp_path


def test_the_record_rebuilds_the_noise_it_was_made_from(folder):
    assignments = Assignments(folder)
    assert len(assignments) == 6
    noise = assignments.noise([4, 1], SHAPE)
    for i, k in enumerate((4, 1)):
        expected = rotate(seeded_normal([1000 + k], SHAPE), torch.from_numpy(record(k)["skew"])[None], 2)
        torch.testing.assert_close(noise[i], expected[0], rtol=0, atol=1e-5)
    assert [row["prompt"] for row in assignments.rows([4, 1], ["prompt"])] == ["prompt 4", "prompt 1"]
    assert torch.equal(assignments.targets([4, 1], SHAPE).flatten(1)[:, 0], torch.tensor([4.0, 1.0]))


def test_a_part_carries_its_failures_and_counts(folder):
    about = read_about(open_store(folder), part_name(1, "f"))
    assert about["rows"] == 3
    assert about["failures"] == [{"sample_id": "x", "row": 9, "reason": "missing-image", "message": "gone"}]


def test_a_changed_seed_or_skew_is_noticed(folder):
    for change in ({"noise_seed": 5}, {"skew": record(1)["skew"]}):
        rows = [record(0) | change, record(1), record(2)]
        write_part(folder, 0, rows)
        with pytest.raises(UserError, match=r"000000_x.*does not match its checksum"):
            Assignments(folder).noise([0, 1, 2], SHAPE)


def test_damaged_bytes_are_noticed(folder):
    part = folder / part_name(0, "f")
    content = bytearray(part.read_bytes())
    content[len(content) // 3] ^= 0xFF
    part.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged.*run the same `ortho assign` again"):
        Assignments(folder).noise([0], SHAPE)
    part.write_bytes(content[:100])
    with pytest.raises(UserError, match="not a readable assignment part"):
        read_about(open_store(folder), part.name)


def test_an_unfinished_run_is_not_trusted(folder):
    (folder / part_name(1, "f")).unlink()
    with pytest.raises(UserError, match="1 of 2 parts are missing"):
        Assignments(folder)


def test_another_models_latent_is_refused(folder):
    with pytest.raises(UserError, match="made for another model"):
        Assignments(folder).noise([0], (3, 8, 8))


def test_another_versions_assignments_are_refused(folder):
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"format": 1}))
    with pytest.raises(UserError, match="are of format 1, this version reads 3: assign again"):
        Assignments(folder)


def rewrite(folder, config, rows):
    """The folder's plan with another configuration, and its first part with other rows."""
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"config": CONFIG | config}))
    write_part(folder, 0, rows, store=config.get("store", "parameters"))
    return Assignments(folder)


def test_a_matrix_for_each_region_is_rebuilt_as_such(folder):
    skew = 0.1 * torch.randn(1, 4 * 120, generator=torch.Generator().manual_seed(0))
    noise = rebuild_noise([1000], skew, 2, SHAPE, 2)
    row = {"skew": skew[0].numpy(), "regions": 2, "noise_checksum": float(noise_checksum(noise)[0])}
    assignments = rewrite(folder, {"regions": 2}, [record(0) | row])
    torch.testing.assert_close(assignments.noise([0], SHAPE), rotate(seeded_normal([1000], SHAPE), skew, 2, 2))
    assert torch.equal(assignments.found(0, SHAPE)["000000_x"].parameters, skew[0])


def test_free_noise_is_kept_itself_and_a_search_can_go_on_from_it(folder):
    noise = 1.1 * seeded_normal([7], SHAPE)
    row = {
        "skew": None,
        "regions": 0,
        "noise": noise.flatten().numpy(),
        "noise_checksum": float(noise_checksum(noise)[0]),
    }
    assignments = rewrite(folder, {"transform": "free"}, [record(0) | row])
    assert torch.equal(assignments.noise([0], SHAPE), noise)
    start = assignments.found(0, SHAPE)["000000_x"].parameters
    torch.testing.assert_close(seeded_normal([1000], SHAPE) + start.view(1, *SHAPE), noise)
    broken = row | {"noise": np.roll(row["noise"], 1)}
    with pytest.raises(UserError, match="does not match its checksum"):
        rewrite(folder, {"transform": "free"}, [record(0) | broken]).noise([0], SHAPE)


def test_noise_can_be_kept_itself_in_half_precision(folder):
    skew = torch.from_numpy(record(1)["skew"])[None]
    noise = rebuild_noise([1001], skew, 2, SHAPE).half()
    row = record(1) | {"noise": noise[0].flatten().numpy(), "noise_checksum": float(noise_checksum(noise.float())[0])}
    assignments = rewrite(folder, {"store": "noise"}, [row])
    assert torch.equal(assignments.noise([0], SHAPE), noise.float())
    torch.testing.assert_close(
        assignments.noise([0], SHAPE), rebuild_noise([1001], skew, 2, SHAPE), rtol=1e-3, atol=1e-3
    )
    assert torch.equal(assignments.found(0, SHAPE)["000001_x"].parameters, skew[0])
    with pytest.raises(UserError, match="does not match its checksum"):
        rewrite(folder, {"store": "noise"}, [row | {"noise": -row["noise"]}]).noise([0], SHAPE)


def test_the_rows_of_a_revision_follow_those_of_its_shard(folder):
    write_part(folder, 0, [record(7)], revision=1)
    write_part(folder, 1, [record(8)], revision=2)  # without a revision 1 before it, it does not count
    assignments = Assignments(folder)
    names = [row["sample_id"] for row in assignments.rows(range(len(assignments)), ["sample_id"])]
    assert names == [f"{i:06d}_x" for i in (0, 1, 2, 7, 3, 4, 5)]
    assert set(assignments.found(0, SHAPE)) == {f"{i:06d}_x" for i in (0, 1, 2, 7)}


def test_every_row_is_checked_whichever_part_it_is_in(folder):
    foreign = folder / part_name(0, "another")
    foreign.write_bytes((folder / part_name(0, "f")).read_bytes())
    assert len(Assignments(folder)) == 6
