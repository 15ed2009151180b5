"""Plans: kept in a file and read back as they were, or refused in one line."""

import json

import pytest
from pydantic import ValidationError

from ortho_core.errors import UserError
from ortho_core.records.parts import HALF_SCHEMA, SCHEMA
from ortho_core.records.plan import (
    ASSIGNMENT_PLANS,
    FORMAT,
    ImportedPlan,
    NoiseSettings,
    ReconstructionPlan,
    RewardPlan,
    differences,
    fingerprint,
    parse_plan,
    read_plan,
)
from ortho_core.storage.open import open_store

NOISE = NoiseSettings(
    seed=3, transform="orthogonal", patch_size=2, regions=1, candidates=4, store="parameters", store_latents=True
)
COMMON = {
    "pairs_fingerprint": "p",
    "model_fingerprint": "m",
    "rows": 5,
    "rows_per_shard": 2,
    "shards": 3,
    "noise": NOISE,
}
CONFIG = {"steps": 3, "lr": 5e-4, "optimizer": "lbfgs", "patience": None, "layers": ["a", "b"]}
RECONSTRUCTION = ReconstructionPlan(**COMMON, config=CONFIG)
REWARD = RewardPlan(
    **COMMON,
    config=CONFIG,
    rewards={"pickscore": 0.1, "clip": 1.0},
    report_rewards=None,
    reward_fingerprints={"clip": "c"},
)
IMPORTED = ImportedPlan(
    **COMMON, samples_fingerprint="s", latent_shape=(4, 8, 8), noise_scale=None, model_noise_scale=14.61464
)
PLANS = [RECONSTRUCTION, REWARD, IMPORTED]


def keep(folder, plan):
    open_store(folder).replace("plan.json", plan.text().encode())
    return open_store(folder)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.kind)
def test_a_plan_is_read_back_as_it_was(plan, tmp_path):
    there = read_plan(keep(tmp_path, plan), *ASSIGNMENT_PLANS)
    assert there == plan
    assert type(there) is type(plan)
    assert there.run_fingerprint == plan.run_fingerprint
    assert json.loads((tmp_path / "plan.json").read_text())["run_fingerprint"] == plan.run_fingerprint


def test_the_order_of_names_is_kept(tmp_path):
    assert list(read_plan(keep(tmp_path, REWARD), RewardPlan).rewards) == ["pickscore", "clip"]


def test_the_fingerprint_is_that_of_the_content_and_every_field_counts():
    assert RECONSTRUCTION.run_fingerprint == fingerprint(RECONSTRUCTION.model_dump(mode="json"))
    changes = [
        {"rows": 6},
        {"noise": NOISE.model_copy(update={"regions": 2})},
        {"config": {**CONFIG, "lr": 1e-3}},
        {"warm_start": "w"},
        {"format": FORMAT + 1},
    ]
    changed = [RECONSTRUCTION.model_copy(update=change).run_fingerprint for change in changes]
    assert len({RECONSTRUCTION.run_fingerprint, *changed}) == 1 + len(changes)


def test_a_plan_is_frozen_and_has_no_unknown_fields():
    with pytest.raises(ValidationError, match="frozen"):
        RECONSTRUCTION.rows = 6
    with pytest.raises(ValidationError, match="reward"):
        ReconstructionPlan(**COMMON, config=CONFIG, reward="clip")


def test_the_kind_decides_the_columns_of_the_part_files():
    half = NOISE.model_copy(update={"store": "noise"})
    assert RECONSTRUCTION.part_schema == IMPORTED.part_schema == SCHEMA
    assert RECONSTRUCTION.model_copy(update={"noise": half}).part_schema == HALF_SCHEMA
    assert REWARD.part_schema.names == [*SCHEMA.names, "initial_rewards", "rewards"]
    assert REWARD.model_copy(update={"noise": half}).part_schema.field("noise") == HALF_SCHEMA.field("noise")


def test_parts_are_those_of_the_plan_and_a_revision_counts_on_top_of_all_before_it():
    own, other = RECONSTRUCTION, RECONSTRUCTION.model_copy(update={"rows": 6})
    names = [own.part_name(0), own.part_name(0, 1), own.part_name(0, 3), own.part_name(1, 1), own.part_name(3)]
    names += [other.part_name(2), "plan.json", "part-000002.parquet"]
    assert own.parts_by_shard(reversed(names)) == [names[:2], [], []]


def test_the_settings_have_a_fingerprint_that_rows_and_model_do_not_change():
    elsewhere = {"rows": 6, "shards": 9, "pairs_fingerprint": "q", "model_fingerprint": "n", "warm_start": "w"}
    assert RECONSTRUCTION.model_copy(update=elsewhere).config_fingerprint == RECONSTRUCTION.config_fingerprint
    others = [
        RECONSTRUCTION.model_copy(update={"config": {**CONFIG, "steps": 4}}),
        RECONSTRUCTION.model_copy(update={"noise": NOISE.model_copy(update={"seed": 4})}),
        REWARD,
        REWARD.model_copy(update={"rewards": {"clip": 1.0}}),
    ]
    assert len({plan.config_fingerprint for plan in [RECONSTRUCTION, *others]}) == 5


def altered(**changes):
    return json.dumps(RECONSTRUCTION.as_json() | changes).encode()


def without(name):
    return json.dumps({k: v for k, v in RECONSTRUCTION.as_json().items() if k != name}).encode()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "is damaged: Expecting value"),
        (RECONSTRUCTION.text().encode()[:-40], "is damaged: "),
        (b"\xff\xfe\x00", "is damaged: "),
        (b"[" * 100_000, "is damaged: "),
        (b"null", "was not made by ortho: it names no format"),
        (b'["format"]', "was not made by ortho: it names no format"),
        (b'{"name": "a plan of someone else"}', "was not made by ortho: it names no format"),
        (altered(format=3), f"is of format 3, this version reads {FORMAT}"),
        (altered(format="reference layout 1"), "is of format 'reference layout 1'"),
        (altered(format=[]), r"is of format \[\]"),
        (altered(kind="train"), "another kind of run: 'train', not 'reconstruction' or 'reward' or 'imported'"),
        (altered(kind=None), "another kind of run: None"),
        (without("kind"), "another kind of run: None"),
        (altered(kind="reward"), "is damaged: rewards: Field required"),
        (without("rows"), "is damaged: rows: Field required"),
        (altered(rows="many"), "is damaged: rows: Input should be a valid integer"),
        (altered(rows_per_shard=0), "is damaged: rows_per_shard: Input should be greater than or equal to 1"),
        (
            altered(noise=NOISE.model_dump() | {"transform": "shear"}),
            "is damaged: noise.transform: Input should be 'ortho",
        ),
        (altered(config={"lr": float("nan")}), "was changed: "),
        (altered(more=1), "is damaged: more: Extra inputs are not permitted"),
        (altered(rows=6), r"was changed: its run_fingerprint is '\w{16}', but its content has \w{16}"),
        (without("run_fingerprint"), "was changed: its run_fingerprint is None"),
    ],
)
def test_what_is_no_plan_of_ours_is_refused_in_one_line_that_names_the_file(text, says):
    with pytest.raises(UserError, match=says) as refused:
        parse_plan(text, "folder/plan.json", *ASSIGNMENT_PLANS)
    assert str(refused.value).startswith("folder/plan.json ")
    assert "\n" not in str(refused.value)


def test_a_plan_of_another_kind_than_is_read_is_refused(tmp_path):
    with pytest.raises(UserError, match="another kind of run: 'reward', not 'reconstruction'"):
        read_plan(keep(tmp_path, REWARD), ReconstructionPlan)
    with pytest.raises(FileNotFoundError):
        read_plan(open_store(tmp_path / "nowhere"), ReconstructionPlan)


def test_differences_are_one_phrase_per_leaf():
    changed = RECONSTRUCTION.model_copy(
        update={
            "rows": 6,
            "noise": NOISE.model_copy(update={"patch_size": 4}),
            "config": CONFIG | {"lr": 1.0, "new": 1},
        }
    )
    assert differences(RECONSTRUCTION.content(), changed.content()) == [
        "config.lr was 0.0005, now 1.0",
        "config.new was None, now 1",
        "noise.patch_size was 2, now 4",
        "rows was 5, now 6",
    ]
    assert differences(REWARD.content(), REWARD.content()) == []


def test_differences_reach_into_groups_and_see_what_came_and_went():
    assert differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}) == [
        "a.c was 2, now 5",
        "d was 3, now None",
        "e was None, now 4",
    ]
