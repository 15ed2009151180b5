"""`ortho reward`: one prompt, a file of prompts, and what is trained on it."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file

from ortho_core.errors import UserError
from ortho_core.evaluation.features import TINY_CLIP
from ortho_core.generators.load import load_generator
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.pictures import load_sheet, to_bytes
from ortho_core.records.assignments import Assignments
from ortho_core.rewards.combined import load_rewards
from ortho_core.storage.open import open_store
from rayjobs.reports.summaries import RewardSummary
from rayjobs.reward.config import RewardJob
from rayjobs.reward.job import describe, make_plan, run
from rayjobs.reward.report import write_report
from rayjobs.train import job as train
from tests.chromium import check_in_browser, check_source

PROMPTS = [
    "a red handwritten two on a white background",
    "a blue handwritten seven on a black background",
    "a green handwritten four on a gray background",
    "an orange handwritten nine on a black background",
    "a white handwritten zero on a black background",
]


def job(tiny_turbo, out, **options):
    folders = {"clip": TINY_CLIP}
    usual = {"model": tiny_turbo, "reward": "clip", "reward_folders": folders, "steps": 6, "cpus_per_worker": 0.5}
    return RewardJob(**{**usual, "out": str(out), **options})


def file_of(folder, lines):
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


def table_of(out):
    parts = sorted(out.glob("part-*.parquet"))
    return {row["sample_id"]: row for part in parts for row in pq.read_table(part).to_pylist()}


@pytest.fixture(scope="module")
def done(tiny_turbo, tmp_path_factory, ray_session):
    """Five prompts and a blank one, in shards of two."""
    folder = tmp_path_factory.mktemp("reward")
    prompts = file_of(folder, [{"prompt": p} for p in [*PROMPTS[:2], "  ", *PROMPTS[2:]]])
    assert run(job(tiny_turbo, folder / "out", prompts=prompts, rows_per_shard=2, seed=3)) == 3
    return folder / "out", prompts


def test_every_prompt_is_raised_and_a_blank_one_quarantined(done):
    out, _ = done
    rows, summary = table_of(out), json.loads((out / "summary.json").read_text())
    assert [row["prompt"] for row in rows.values()] == PROMPTS
    assert (summary["assigned"], summary["quarantined_by_reason"]) == (5, {"missing-prompt": 1})
    before, after = ([dict(row[column])["clip"] for row in rows.values()] for column in ("initial_rewards", "rewards"))
    assert all(b > a for a, b in zip(before, after, strict=True))
    told = summary["rewards"]["clip"]
    assert told["before"] == pytest.approx(sum(before) / 5, abs=1e-5)
    assert told["after"] == pytest.approx(sum(after) / 5, abs=1e-5)
    assert told["improved"] == 1.0
    gain = np.array(after) - np.array(before)
    assert told["gain"]["value"] == pytest.approx(gain.mean(), abs=1e-5)
    assert told["gain"]["high"] - told["gain"]["value"] == pytest.approx(1.96 * gain.std(ddof=1) / 5**0.5, rel=1e-3)
    assert told["gain"]["count"] == 5


def test_the_report_shows_the_first_prompts_before_and_after(done, tiny_turbo, tmp_path):
    out, _ = done
    assert check_source(out / "report.html") == 2 * 5 + 2
    text = (out / "report.html").read_text()
    assert "The reward clip is higher than before:" in text
    assert "missing-prompt" in text
    check_in_browser(out / "report.html", tmp_path / "browser", images=12)
    generator, found = load_generator(ModelFolder.open(tiny_turbo)), Assignments(out)
    condition = generator.encode_prompts(PROMPTS)
    for name, noise in (("before", found.base_noise), ("after", found.noise)):
        images = generator.decode(generator.denoise(noise(range(5), generator.latent_shape), condition))
        kept = load_sheet(out / "pictures" / f"{name}.png", generator.image_size)
        assert (to_bytes(images).int() - kept.int()).abs().max() <= 1


def test_the_report_is_the_same_on_an_object_store(done, s3):
    out, _ = done
    there = open_store(s3() + "/run")
    for file in (*out.iterdir(), *(out / "pictures").iterdir()):
        if file.is_file():
            there.replace(str(file.relative_to(out)), file.read_bytes())
    there.remove("report.html")
    write_report(there, RewardSummary.read(out / "summary.json"))
    assert there.read("report.html") == (out / "report.html").read_bytes()


def test_the_recorded_noise_makes_an_image_of_the_recorded_reward(done, tiny_turbo):
    out, _ = done
    found, generator = Assignments(out), load_generator(ModelFolder.open(tiny_turbo))
    index = range(len(found))
    noise = found.noise(index, generator.latent_shape)
    latents = generator.denoise(noise, generator.encode_prompts(PROMPTS))
    assert latents.detach().numpy() == pytest.approx(found.targets(index, generator.latent_shape).numpy(), abs=1e-4)
    rewards = load_rewards("clip", {"clip": TINY_CLIP})
    scores = rewards.score(generator.decode(latents).clamp(0, 1), PROMPTS)
    recorded = [dict(row["rewards"])["clip"] for row in table_of(out).values()]
    assert scores.tolist() == pytest.approx(recorded, abs=1e-4)


def test_a_lost_part_is_made_again_bit_for_bit_and_other_rewards_are_refused(done, tiny_turbo, tmp_path):
    out, prompts = done
    part = sorted(out.glob("part-*.parquet"))[1]
    content = pq.read_table(part)
    part.unlink()
    assert run(job(tiny_turbo, out, prompts=prompts, rows_per_shard=2, seed=3)) == 3
    assert pq.read_table(part).equals(content)
    other = tmp_path / "clip"
    other.mkdir()
    for file in (TINY_CLIP).iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    with pytest.raises(UserError, match=r"reward_fingerprints\.clip was"):
        run(job(tiny_turbo, out, prompts=prompts, rows_per_shard=2, seed=3, reward_folders={"clip": other}))


def test_what_was_found_is_distilled_to_the_base_noise(done, tiny_turbo, tmp_path):
    out, _ = done
    settings = {"assignments": str(out), "model": tiny_turbo, "epochs": 12, "batch_size": 5, "lr": 5e-4}
    settings |= {"num_workers": 0, "save_every": 0, "tensorboard": False, "preserve_latent_weight": 0.0}
    trained = train.TrainJob(**settings, out=tmp_path / "t", noise="base")
    assert train.run(trained) == 0
    epochs = json.loads((tmp_path / "t" / "train_summary.json").read_text())["epochs"]
    found, generator = Assignments(out), load_generator(ModelFolder.open(tiny_turbo))
    shape, index = generator.latent_shape, range(5)
    start = generator.denoise(found.base_noise(index, shape), generator.encode_prompts(PROMPTS))
    first = (start - found.targets(index, shape)).square().mean()
    assert epochs[0]["loss"] == pytest.approx(float(first), rel=1e-3)
    assert epochs[-1]["loss"] < 0.5 * epochs[0]["loss"]
    with pytest.raises(UserError, match="accepted: --noise base \\(distil them"):
        train.run(train.TrainJob(**settings, out=tmp_path / "m"))
    with pytest.raises(UserError, match="latents without images"):
        train.run(train.TrainJob(**settings, out=tmp_path / "p", noise="base", pixel_l1_weight=1.0))


def test_one_prompt_leaves_pictures_curves_and_its_noise(tiny_turbo, tmp_path):
    out = tmp_path / "one"
    assert run(job(tiny_turbo, out, prompt=PROMPTS[0], save_steps=True, steps=5)) == 0
    meta = json.loads((out / "meta.json").read_text())
    clip = meta["rewards"]["clip"]
    assert clip["after"] > clip["before"]
    assert len(list((out / "steps").iterdir())) == meta["evaluations"]
    # Before and after, a picture of each evaluation, the Gaussian check.
    pictures = 2 + meta["evaluations"] + 2
    assert check_source(out / "report.html") == pictures
    check_in_browser(out / "report.html", tmp_path / "browser", images=pictures)
    for name in ("best", "initial", "comparison", "reward_history", "orthogonal_gaussian_final"):
        with Image.open(out / f"{name}.png") as picture:
            picture.load()
    generator = load_generator(ModelFolder.open(tiny_turbo))
    noise = load_file(out / "best_input_noise.safetensors")["noise"]
    image = generator.decode(generator.denoise(noise, generator.encode_prompts(PROMPTS[:1]))).clamp(0, 1)
    score = load_rewards("clip", {"clip": TINY_CLIP}).score(image, PROMPTS[:1])
    assert float(score[0]) == pytest.approx(clip["after"], abs=2e-3)  # that of the picture in whole grey levels


def test_text_and_parquet_prompts_are_read_alike(tiny_turbo, tmp_path):
    import pyarrow as pa

    (tmp_path / "p.txt").write_text("\n".join([*PROMPTS, ""]))
    pq.write_table(pa.table({"caption": PROMPTS, "image": [None] * 5}), tmp_path / "p.parquet")
    for name in ("p.txt", "p.parquet"):
        one = job(tiny_turbo, tmp_path / "out", prompts=str(tmp_path / name))
        plan, rows, shards = make_plan(one, ModelFolder.open(tiny_turbo))
        read = [row for shard in shards for row in rows.read(shard)]
        assert [(row.sample_id, row.prompt) for row in read] == [(f"{i:06d}", p) for i, p in enumerate(PROMPTS)]
        assert plan.rows == 5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "give --prompt TEXT or --prompts FILE"),
        ({"prompt": "a", "prompts": "b"}, "and not both"),
        ({"prompt": "a", "out": "s3://bucket/a"}, "accepted: a local folder"),
        ({"prompts": "b", "save_steps": True}, "works only with --prompt"),
        ({"prompt": "   "}, "--prompt is blank"),
        ({"prompt": "a", "reward": "beauty"}, "unknown"),
        ({"prompt": "a", "reward": "clip:x"}, "weight"),
        ({"prompt": "a", "reward": "pickscore"}, "pickscore"),
        ({"prompt": "a", "report_rewards": "clip"}, "clip is in --reward"),
        ({"prompt": "a", "patch_size": 3}, "does not divide"),
        ({"prompts": "nowhere.jsonl"}, "no file of prompts at nowhere.jsonl: it does not exist"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(tiny_turbo, tmp_path, options, says):
    with pytest.raises(UserError, match=says):
        describe(job(tiny_turbo, **{"out": tmp_path / "out", **options}))
    assert not (tmp_path / "out").exists()
