import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ortho_core.errors import UserError
from ortho_core.noise.rotation import rotate
from ortho_core.noise.seeded import seeded_normal
from ortho_core.pairs.rows import Failure
from ortho_core.records.assignments import Assignments, noise_checksum, rebuild_noise
from ortho_core.records.parts import SCHEMA, PartAbout, encode_part, part_name, read_footer
from ortho_core.records.plan import FORMAT, NoiseSettings, ReconstructionPlan
from ortho_core.storage.open import open_store

SHAPE = (4, 8, 8)
NOISE = NoiseSettings(seed=0, transform="orthogonal", patch_size=2, regions=1, store="parameters", store_latents=True)
PLAN = ReconstructionPlan(
    pairs_fingerprint="p", model_fingerprint="m", noise=NOISE, config={}, rows=7, rows_per_shard=4, shards=2
)


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


def write_part(folder, shard, rows, failures=(), revision=0, plan=PLAN):
    about = PartAbout(
        shard=shard, revision=revision, run_fingerprint=plan.run_fingerprint, written=0.0, failures=failures
    )
    (folder / plan.part_name(shard, revision)).write_bytes(encode_part(rows, about, plan.part_schema))


def write_plan(folder, plan):
    (folder / "plan.json").write_text(plan.text())


@pytest.fixture
def folder(tmp_path):
    """Two committed parts of three rows."""
    write_plan(tmp_path, PLAN)
    for shard in range(2):
        rows = [record(3 * shard + i) for i in range(3)]
        failures = (Failure("x", 9, "missing-image", "gone"),) * shard
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
    footer = read_footer(open_store(folder), PLAN.part_name(1))
    assert footer.rows == 3
    assert footer.about.failures == (Failure("x", 9, "missing-image", "gone"),)


def test_a_changed_seed_or_skew_is_noticed(folder):
    for change in ({"noise_seed": 5}, {"skew": record(1)["skew"]}):
        rows = [record(0) | change, record(1), record(2)]
        write_part(folder, 0, rows)
        with pytest.raises(UserError, match=r"000000_x.*does not match its checksum"):
            Assignments(folder).noise([0, 1, 2], SHAPE)


def test_all_prompts_are_read_each_once(folder):
    assert Assignments(folder).prompts() == {f"prompt {i}" for i in range(6)}  # one of the seven failed


def test_damaged_bytes_are_noticed(folder):
    part = folder / PLAN.part_name(0)
    content = bytearray(part.read_bytes())
    chunk = pq.read_metadata(part).row_group(0).column(SCHEMA.get_field_index("skew"))
    content[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 0xFF
    part.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged.*run the same `ortho assign` again") as refused:
        Assignments(folder).noise([0], SHAPE)
    assert "\n" not in str(refused.value)
    part.write_bytes(content[:100])
    with pytest.raises(UserError, match="not a readable assignment part"):
        read_footer(open_store(folder), part.name)


def test_an_unfinished_run_is_not_trusted(folder):
    (folder / PLAN.part_name(1)).unlink()
    with pytest.raises(UserError, match="1 of 2 parts are missing"):
        Assignments(folder)


def test_another_models_latent_is_refused(folder):
    with pytest.raises(UserError, match="made for another model"):
        Assignments(folder).noise([0], (3, 8, 8))


def test_another_versions_assignments_are_refused(folder):
    write_plan(folder, PLAN.model_copy(update={"format": 1}))
    with pytest.raises(UserError, match=rf"plan.json is of format 1, this version reads {FORMAT}: assign again"):
        Assignments(folder)


def test_no_plan_or_a_damaged_one_is_one_line_with_the_place_and_the_remedy(folder):
    (folder / "plan.json").write_text(PLAN.text()[:50])
    with pytest.raises(UserError, match=rf"{folder}/plan.json is damaged: .*: assign again"):
        Assignments(folder)
    (folder / "plan.json").unlink()
    with pytest.raises(
        UserError, match=r"holds no assignments: .*/plan.json does not exist \(make them with `ortho assign`"
    ):
        Assignments(folder)


def rewrite(folder, settings, rows):
    """The folder with other settings of its noise, and its first part with other rows."""
    plan = PLAN.model_copy(update={"noise": NOISE.model_copy(update=settings)})
    write_plan(folder, plan)
    for part in folder.glob(f"part-*-{PLAN.run_fingerprint}*"):
        part.rename(folder / part.name.replace(PLAN.run_fingerprint, plan.run_fingerprint))
    write_part(folder, 0, rows, plan=plan)
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
    foreign.write_bytes((folder / PLAN.part_name(0)).read_bytes())
    assert len(Assignments(folder)) == 6
