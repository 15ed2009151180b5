"""What `name:weight,...` means, where files are looked for, and what fingerprints notice."""

import shutil
from pathlib import Path

import pytest

from ortho_core.errors import UserError
from ortho_core.rewards.kinds import KINDS
from ortho_core.rewards.names import parse_rewards, reward_fingerprints, reward_folder


@pytest.mark.parametrize(
    ("spec", "weights"),
    [
        ("hpsv2:5,pickscore:0.05", {"hpsv2.1": 5.0, "pickscore": 0.05}),
        ("hpsv2.0, hpsv2.1:2", {"hpsv2.0": 1.0, "hpsv2.1": 2.0}),
        ("hybrid", {"aesthetic": 1.0, "clip": 0.25}),
        ("pickscore : 1e-1,hybrid:2", {"pickscore": 0.1, "aesthetic": 2.0, "clip": 0.5}),
    ],
)
def test_weights_by_name_in_the_order_given(spec, weights):
    found = parse_rewards(spec)
    assert found == weights
    assert list(found) == list(weights)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("", "reward '' is unknown; accepted: aesthetic, clip"),
        ("clip,,pickscore", "reward '' in"),
        (
            "hps:1",
            r"reward 'hps' in 'hps:1' is unknown, did you mean hpsv2\?; accepted: .*hpsv2, hpsv2.0, hpsv2.1.*pickscore",
        ),
        ("clip:much", "the weight 'much' of reward clip"),
        ("clip:", "the weight '' of reward clip"),
        ("clip:0", "a number above 0"),
        ("clip:-1", "a number above 0"),
        ("clip:nan", "a number above 0"),
        ("clip:inf", "a number above 0"),
        ("clip:1:2", "the weight '1:2'"),
        ("clip,clip:2", "reward clip is in 'clip,clip:2' twice"),
        ("hybrid,clip", "reward clip is in 'hybrid,clip' twice"),
        ("hpsv2,hpsv2.1", "reward hpsv2.1 is in"),
    ],
)
def test_what_is_wrong_is_told_with_what_is_accepted(spec, said):
    with pytest.raises(UserError, match=said):
        parse_rewards(spec)


def test_folders_are_under_the_root_or_where_the_mapping_says():
    assert reward_folder("pickscore") == Path("models/pickscore-v1")
    assert reward_folder("hpsv2.0", Path("m")) == Path("m/hpsv2")
    assert reward_folder("clip", {"clip": Path("elsewhere/clip")}) == Path("elsewhere/clip")
    assert reward_folder("aesthetic", {"clip": Path("elsewhere/clip")}) == Path("models/aesthetic")
    assert reward_folder("aesthetic", {"": Path("m"), "clip": Path("x")}) == Path("m/aesthetic")
    usual = {name: Path("m") / kind.folder for name, kind in KINDS.items()}
    assert reward_folder("hpsv2.1", usual | {"hpsv2": Path("x")}) == Path("x")
    with pytest.raises(UserError, match="a folder is given for reward 'clop', which is unknown; accepted: aesthetic"):
        reward_folder("clip", {"clop": Path("x")})


def test_fingerprints_notice_other_weights_and_nothing_else(clip_folder, tmp_path):
    copy = tmp_path / "clip"
    shutil.copytree(clip_folder, copy)
    (copy / "README.md").write_text("another")
    there, here = ({"clip": folder, "pickscore": clip_folder} for folder in (clip_folder, copy))
    first = reward_fingerprints(["clip", "pickscore"], there)
    assert first == reward_fingerprints(["clip", "pickscore"], here)
    assert all(len(fingerprint) == 16 for fingerprint in first.values())
    with open(copy / "model.safetensors", "ab") as stream:
        stream.write(b"x")
    second = reward_fingerprints(["clip", "pickscore"], here)
    assert second["clip"] != first["clip"]
    assert second["pickscore"] == first["pickscore"]
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"reward clip: .*has no model.safetensors"):
        reward_fingerprints(["clip"], here)
