"""The catalogue that ships, and what is said of others that are wrong."""

import math
import shutil
from pathlib import Path

import diffusers
import pytest
from diffusers import EulerDiscreteScheduler, LCMScheduler

from ortho_core.errors import UserError
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.generators.one_step import OneStep
from ortho_core.generators.origin import RECORD, read_record
from ortho_core.rewards.kinds import KINDS
from ortho_core.rewards.names import check_reward_files, reward_fingerprints
from rayjobs.download.assemble import scheduler_of
from rayjobs.download.catalog import (
    find_older,
    is_here,
    missing_files,
    needed,
    select,
    write_record,
)
from rayjobs.verb.catalog import read_catalog

CATALOG = read_catalog()
ROOT = Path(__file__).parents[3]
GENERATORS = [name for name, entry in CATALOG.items() if entry.kind == "generator"]
#: The schedulers of the complete pipelines, as their repositories configure them, and of the bases.
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
TRAILING = {**BETAS, "prediction_type": "epsilon", "steps_offset": 1, "timestep_spacing": "trailing"}
SCM = {"num_train_timesteps": 1000, "prediction_type": "trigflow", "sigma_data": 0.5}
PUBLISHED = {
    "sdxl-turbo": TRAILING,
    "sd-turbo": TRAILING,
    "flux-schnell": {"num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False},
    "sana-sprint-0.6b": SCM,
    "sana-sprint-1.6b": SCM,
}
BASE = EulerDiscreteScheduler.from_config({**TRAILING, "timestep_spacing": "leading"})
#: Prediction types as the documentation writes them.
SYMBOLS = {"epsilon": "ε", "sample": "x₀", "flow": "flow", "trigflow": "TrigFlow"}
ENTRY = """
[models.one]
title = "One"
kind = "part"
folder = "one"
repository = "someone/one"
revision = "main"
files = [{ path = "weights.bin", size = 3 }]
[models.one.license]
id = "mit"
commercial = "yes"
allows = "any use"
"""


def written(tmp_path, text):
    file = tmp_path / "catalog.toml"
    file.write_text(text)
    return file


def stepping(prediction_type):
    """The lines of an entry that make it a generator with this recipe."""
    return f'kind = "generator"\nrecipe = {{ scheduler = "LCMScheduler", prediction_type = {prediction_type} }}'


def put(root, *names):
    """Empty files where the catalogue wants the entries' files."""
    for name in names:
        for file in CATALOG[name].files:
            place = root / CATALOG[name].folder / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()


def step_of(name):
    """The measured step of a generator: that of its own scheduler, or the one that assembling gives it."""
    entry = CATALOG[name]
    if entry.assemble:
        return OneStep.of(scheduler_of(entry.recipe, BASE), entry.recipe.timestep)
    return OneStep.of(getattr(diffusers, entry.recipe.scheduler).from_config(PUBLISHED[name]))


def test_the_documentation_has_every_entry_with_its_licence_and_step():
    rows = [
        line for line in (ROOT / "docs" / "guides" / "models.md").read_text().splitlines() if line.startswith("| `")
    ]
    for name, entry in CATALOG.items():
        (row,) = [row for row in rows if f"`{name}`" in row.split("|")[1]]
        assert entry.license.id.removeprefix("stated ") in row
        if entry.recipe:
            assert f"{SYMBOLS[entry.recipe.prediction_type]}, {step_of(name).timestep:.4g} |" in row
        assert entry.kind != "generator" or f"`models/{entry.model_folder}`" in row


def test_every_model_is_there_at_a_commit():
    assert {"sdxl-turbo", "sd-turbo", "hyper-sd15", "hyper-sdxl", "dmd2-sdxl", "sdxl-vae-fp16-fix"} <= set(CATALOG)
    assert {"flux-schnell", "sana-sprint-0.6b", "sana-sprint-1.6b", "sdxl-lightning"} <= set(CATALOG)
    assert all(len(entry.revision) == 40 for entry in CATALOG.values())
    for entry in CATALOG.values():
        assert entry.bytes_about > 0
        assert (entry.license.commercial == "no") == entry.license.id.startswith("cc-by-nc")


@pytest.mark.parametrize("reward", KINDS)
def test_rewards_find_what_the_catalogue_puts_there_and_need_no_more_than_it_has(reward, tmp_path):
    names = select(CATALOG, [reward])
    put(tmp_path, *names)
    files = check_reward_files(reward, tmp_path)
    assert {file.relative_to(tmp_path).parts[0] for file in files} == {CATALOG[name].folder for name in names}
    for name in names:
        for file in CATALOG[name].files:
            place = tmp_path / CATALOG[name].folder / file.path
            place.unlink()
            (tmp_path / CATALOG[name].folder / RECORD).unlink(missing_ok=True)
            others = [other for other in file.instead if (place.parent / other).is_file()]
            if place in files and not others and place.suffix in {".pt", ".pth", ".safetensors"}:
                with pytest.raises(UserError, match="no "):
                    check_reward_files(reward, tmp_path)
            place.touch()


def test_generators_name_all_that_their_pipelines_load():
    for entry in CATALOG.values():
        if entry.kind not in {"generator", "base"} or entry.assemble:
            continue
        paths = {file.path for file in entry.files}
        assert {"model_index.json", "scheduler/scheduler_config.json", "vae/config.json"} <= paths
        parts = {path.split("/")[0] for path in paths if "/" in path}
        assert len(parts & {"unet", "transformer"}) == 1
        assert sum(part.startswith("text_encoder") for part in parts) == sum(
            part.startswith("tokenizer") for part in parts
        )
        for part in parts - {"scheduler"}:
            if part.startswith("tokenizer"):
                assert f"{part}/tokenizer_config.json" in paths
                continue
            assert f"{part}/config.json" in paths
            weights = {path for path in paths if path.startswith(f"{part}/") and path.endswith(".safetensors")}
            if entry.kind == "base" and part == "unet" and not weights:
                continue  # another UNet takes its place
            stem = f"{part}/{'model' if part.startswith('text_encoder') else 'diffusion_pytorch_model'}"
            n = len(weights)
            shards = {f"{stem}-{i + 1:05}-of-{n:05}.safetensors" for i in range(n)}
            assert weights == (shards if f"{stem}.safetensors.index.json" in paths else {f"{stem}.safetensors"})
        assert not any(".fp16." in path for path in paths)  # the loader asks for no variant


@pytest.mark.parametrize("name", GENERATORS)
def test_recipes_are_single_steps_that_the_schedulers_can_take(name):
    recipe, step = CATALOG[name].recipe, step_of(name)
    # A complete pipeline steps where its scheduler begins; one that is assembled states where.
    assert recipe.timestep in (None, step.timestep)
    if name in PUBLISHED:
        assert PUBLISHED[name].get("prediction_type", "flow") == recipe.prediction_type


def test_the_steps_of_flow_models_are_those_of_their_equations():
    """Rectified flow from t = 1 to 0: x - v. TrigFlow from t = pi/2: x0 = cos(t) x - sin(t) v, that is -v (arXiv:2410.11081)."""
    flux, sana = step_of("flux-schnell"), step_of("sana-sprint-1.6b")
    assert (flux.timestep, flux.input_scale, flux.noise_weight, flux.output_weight) == pytest.approx((1000, 1, 1, -1))
    assert (sana.timestep, sana.input_scale, sana.output_weight) == pytest.approx((math.pi / 2, 1, -1), abs=1e-5)
    assert sana.noise_weight == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("name", "shifted"), [("nitrosd-realism", 250), ("nitrosd-vibrant", 500)])
def test_nitrosd_makes_the_step_of_its_published_scheduler(name, shifted):
    """Its TimestepShiftLCMScheduler steps with LCM at 999, and gives the network int(999 * shifted / 1000)."""
    step, lcm = step_of(name), OneStep.of(LCMScheduler(**BETAS), 999)
    assert step.timestep == int(999 * shifted / 1000)
    ours, theirs = ((each.input_scale, each.noise_weight, each.output_weight) for each in (step, lcm))
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_what_is_required_comes_first_and_once():
    assert select(CATALOG, ["aesthetic", "clip", "hyper-sdxl", "dmd2-sdxl"]) == [
        *("clip", "aesthetic", "sdxl-base", "hyper-sdxl", "dmd2-sdxl")
    ]
    with pytest.raises(UserError, match=r"--only 'sdxl-turbp' is not in the catalogue; accepted: all, sdxl-turbo, "):
        select(CATALOG, ["sdxl-turbp"])


def test_an_assembled_model_needs_neither_its_files_nor_its_base(tiny_turbo, tmp_path):
    assert needed(["hyper-sdxl"], CATALOG, tmp_path) == ["sdxl-base", "hyper-sdxl"]
    shutil.copytree(tiny_turbo, tmp_path / CATALOG["hyper-sdxl"].model_folder)
    assert is_here("hyper-sdxl", CATALOG, tmp_path)
    assert needed(["hyper-sdxl"], CATALOG, tmp_path) == []
    assert needed(["hyper-sdxl", "dmd2-sdxl"], CATALOG, tmp_path) == ["sdxl-base", "dmd2-sdxl"]


def test_files_of_the_wrong_size_are_missing_and_others_may_stand_in(tmp_path):
    catalog = read_catalog(written(tmp_path, ENTRY))
    entry = catalog["one"]
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "weights.bin").write_bytes(b"12")
    assert [file.path for file in missing_files("one", entry, tmp_path)] == ["weights.bin"]
    (tmp_path / "one" / "weights.bin").write_bytes(b"123")
    assert missing_files("one", entry, tmp_path) == []
    write_record(tmp_path / "one", "one", entry, "0" * 40, {"weights.bin": {"size": 4, "sha256": "0" * 64}})
    assert missing_files("one", entry, tmp_path) != []  # the record knows better
    put(tmp_path, "clip")
    clip = tmp_path / "clip-vit-large-patch14"
    (clip / "model.safetensors").rename(clip / "pytorch_model.bin")
    assert missing_files("clip", CATALOG["clip"], tmp_path) == []


def test_how_a_model_got_there_is_no_part_of_its_fingerprint(tiny_turbo, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_turbo, folder)
    write_record(folder, "sdxl-turbo", CATALOG["sdxl-turbo"], "0" * 40, {"vae/config.json": {"size": 1, "sha256": ""}})
    write_record(folder, "sdxl-turbo", CATALOG["sdxl-turbo"], "0" * 40, {"unet/config.json": {"size": 2, "sha256": ""}})
    assert set(read_record(folder)["sdxl-turbo"]["files"]) == {"vae/config.json", "unet/config.json"}
    assert ModelFolder.open(folder).fingerprint == ModelFolder.open(tiny_turbo).fingerprint
    put(tmp_path, "clip")
    before = reward_fingerprints(["clip"], tmp_path)
    write_record(tmp_path / CATALOG["clip"].folder, "clip", CATALOG["clip"], "0" * 40, {})
    assert reward_fingerprints(["clip"], tmp_path) == before


@pytest.mark.parametrize(
    ("place", "loose"),
    [
        ("aesthetic", False),
        ("Aesthetic", False),
        ("ddpo-aesthetic-predictor", False),
        ("trl-lib/ddpo-aesthetic-predictor", False),
        ("models--trl-lib--ddpo-aesthetic-predictor/snapshots/abc", False),
        (".", True),
    ],
)
def test_older_layouts_are_recognised(place, loose, tmp_path):
    entry = CATALOG["aesthetic"]
    weights = tmp_path / place / entry.files[0].path
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(b"short")
    assert find_older(entry, entry.files, tmp_path) == {}
    with open(weights, "r+b") as file:
        file.truncate(entry.files[0].size)
    found = find_older(entry, entry.files, tmp_path)
    assert [path.resolve() for path in found.values()] == [weights.resolve()]
    if loose:  # whose configuration it is, a loose one does not say
        (tmp_path / "config.json").touch()
        assert find_older(CATALOG["clip"], CATALOG["clip"].files, tmp_path) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("weights.bin", "../weights.bin"), r"one\.files\.0\.path: '\.\./weights\.bin' leads out of its folder"),
        (("weights.bin", "/etc/weights.bin"), "leads out of its folder"),
        (("weights.bin", "a//b"), "leads out of its folder"),
        (('folder = "one"', 'folder = "../one"'), r"one\.folder: .* leads out of its folder"),
        (('folder = "one"', r'folder = "..\\one"'), "leads out of its folder"),
        (('id = "mit"\n', ""), r"one\.license\.id: Field required"),
        (('"yes"', '"maybe"'), r"one\.license\.commercial: Input should be 'yes', 'conditional', 'no' or 'unclear'"),
        (("size = 3", "size = 3, about = 3"), "has both size and about"),
        (("size = 3", 'sha256 = "12"'), r"one\.files\.0\.sha256: String should match"),
        (("size = 3", "bytes = 3"), r"one\.files\.0\.bytes: Extra inputs are not permitted"),
        (("someone/one", "one"), r"one\.repository: String should match"),
        (('kind = "part"', 'kind = "generator"'), "an entry of kind generator needs a recipe"),
        (('kind = "part"', stepping('"flow", timestep = 999')), "flow has no timestep"),
        (('kind = "part"', stepping('"epsilon"')), "epsilon needs a timestep"),
        (('kind = "part"', stepping('"sample", timestep = 1000')), r"recipe\.timestep: Input should"),
        (('kind = "part"', stepping('"flow", options = { shift = 3 }')), "only an entry with assemble has options"),
        (
            (
                'kind = "part"',
                stepping('"flow"')
                + '\nrequires = ["two"]\nassemble = { how = "unet", base = "two", into = "one-step" }',
            ),
            "an entry with assemble needs a recipe with a timestep",
        ),
        (('kind = "part"', 'kind = "part"\nunverified = ""'), r"one\.unverified: String should match"),
        (('kind = "part"', 'kind = "part"\nrequires = ["two"]'), "requires 'two'; accepted: entries above it"),
        (('kind = "part"', "kind = part"), "is not TOML: Invalid value"),
        (("[models.one]", "[model.one]"), "at its top level; accepted: tables"),
    ],
)
def test_a_wrong_catalogue_is_refused_by_file_entry_and_field(change, message, tmp_path):
    with pytest.raises(UserError, match=message) as refusal:
        read_catalog(written(tmp_path, ENTRY.replace(*change)))
    assert str(tmp_path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_catalogue_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"catalogue .*nowhere\.toml: No such file"):
        read_catalog(tmp_path / "nowhere.toml")
