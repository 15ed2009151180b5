"""The EM driver end to end on a real Ray, small."""

import json
import shutil
import sys
from collections import Counter

import pyarrow.parquet as pq
import pytest
import torch

from ortho_core.errors import RunFailed, UserError
from ortho_core.estep.config import MEASURED_WITH
from ortho_core.evaluation.metrics import Estimate
from ortho_core.generators.lora import lora_of
from ortho_core.generators.model_folder import ModelFolder
from ortho_core.mstep.elsewhere import general_prompts
from ortho_core.pairs.hold_out import Part
from ortho_core.records.assignments import Assignments
from ortho_core.records.plan import ReconstructionPlan, read_plan
from ortho_core.storage import hashes
from ortho_core.storage.open import open_store
from rayjobs.assign.config import AssignJob, AssignSettings
from rayjobs.assign.job import run as run_assign
from rayjobs.em.config import EmJob
from rayjobs.em.job import describe, ending, hardly_changed, run, settled
from rayjobs.evaluate.config import EvaluateSettings
from rayjobs.reports.summaries import EVALUATION, Cycle, EmSummary, Evaluation, TrainSummary
from rayjobs.train.config import TrainJob, TrainSettings
from rayjobs.train.job import run as run_train
from rayjobs.train.plan import TrainPlan
from tests.chromium import check_source
from tests.conftest import copy_pairs
from tests.rayjobs.encodings import count_encodings

ASSIGN = AssignSettings(steps=2, rows_per_shard=12, cpus_per_worker=0.5)
TRAIN = TrainSettings(epochs=1, batch_size=12, cpus_per_worker=0.5, save_every=0)
#: In this process.
HERE = TRAIN.model_copy(update={"num_workers": 0})
EVALUATE = EvaluateSettings(rows=16, steps=2, cpus_per_worker=0.5)
ALL_HERE = {
    "assign": ASSIGN.model_copy(update={"workers": "0"}),
    "train": HERE,
    "evaluate": EVALUATE.model_copy(update={"workers": "0"}),
}


def job(small_pairs, model, digits, out, **options):
    settings = {"assign": ASSIGN, "train": TRAIN, "evaluate": EVALUATE, "cycles": 2, "baseline": True}
    heldout = digits / "heldout.jsonl"
    return EmJob(**{**settings, "pairs": small_pairs, "model": model, "heldout": heldout, "work_dir": out, **options})


@pytest.mark.usefixtures("ray_session")
def test_two_cycles_leave_models_numbers_and_a_report(small_pairs, tiny_turbo, digits, tmp_path):
    out = tmp_path / "run"
    em = job(small_pairs, tiny_turbo, digits, out, train=HERE)
    assert run(em) == 0
    summary = json.loads((out / "em_summary.json").read_text())
    assert list(summary["evaluation"]) == ["base", "direct", "cycle_01", "cycle_02"]
    assert "drift" not in summary["evaluation"]["base"]
    assert all(summary["evaluation"][m]["drift"]["value"] > 0 for m in ("direct", "cycle_01", "cycle_02"))
    first, second = (read_plan(open_store(out / f"cycle_0{k}" / "train"), TrainPlan) for k in (1, 2))
    # Cycle 2 starts from cycle 1's model, and both are held to the model the run started from.
    assert first.model_fingerprint == first.preserve_fingerprint == second.preserve_fingerprint
    assert second.model_fingerprint != first.model_fingerprint
    # Its E-step starts from the base noise too, not from what cycle 1 found.
    plans = [read_plan(open_store(out / f"cycle_0{k}" / "assignments"), ReconstructionPlan) for k in (1, 2)]
    assert [plan.warm_start for plan in plans] == [None, None]
    found = [Assignments(out / f"cycle_0{k}" / "assignments") for k in (1, 2)]
    shape = ModelFolder.open(tiny_turbo).latent_shape
    assert torch.equal(found[0].base_noise(range(24), shape), found[1].base_noise(range(24), shape))
    direct = read_plan(open_store(out / "direct" / "train"), TrainPlan)
    assert direct.updates == first.updates + second.updates
    # Targets and four models, twelve columns, at plain noise (two models at another, too) and closest; the Gaussian check.
    assert check_source(out / "report.html") == (7 + 5) * 12 + 2

    times = {p: p.stat().st_mtime_ns for p in out.rglob("*.parquet")} | {
        p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")
    }
    assert run(em) == 0
    assert {p: p.stat().st_mtime_ns for p in times} == times
    with pytest.raises(UserError, match=r"assign\.steps was 2, now 3"):
        run(job(small_pairs, tiny_turbo, digits, out, train=HERE, assign=ASSIGN.model_copy(update={"steps": 3})))


@pytest.mark.usefixtures("ray_session")
def test_a_models_configurations_are_opened_once_and_its_weights_read_before_the_work(
    small_pairs, tiny_turbo, digits, tmp_path, monkeypatch
):
    """In the driver, of a run from the model to the evaluation of what became of it; of weights the header is looked at first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where no hash is known
    monkeypatch.setattr(hashes, "_known", {})
    model, out = tmp_path / "model", tmp_path / "run"
    shutil.copytree(tiny_turbo, model)
    opened = []

    def watch(event, args):
        if event == "open" and opened is not None:
            opened.append(str(args[0]))

    sys.addaudithook(watch)
    options = {"cycles": 1, "baseline": False}
    assert run(job(small_pairs, model, digits, out, **options)) == 0
    counted, opened = Counter(opened), None
    trained = out / "cycle_01" / "train" / "checkpoint-final"
    for folder in (model, trained):
        files = [file for file in folder.rglob("*") if file.suffix in {".json", ".safetensors"}]
        assert {str(file.relative_to(folder)): counted[str(file)] for file in files} == {
            str(file.relative_to(folder)): 2 if file.suffix == ".safetensors" else 1 for file in files
        }


@pytest.mark.usefixtures("ray_session")
def test_assignments_in_a_cache_are_made_once_for_all_runs(small_pairs, tiny_turbo, digits, tmp_path):
    options = {"cycles": 1, "baseline": False, "heldout": None, "assignments_cache": tmp_path / "cache", "train": HERE}
    assert run(job(small_pairs, tiny_turbo, digits, tmp_path / "one", **options)) == 0
    (entry,) = (tmp_path / "cache").iterdir()
    assert json.loads((entry / "summary.json").read_text())["config"]["out"] == str(entry)
    made = {p.name: p.stat().st_mtime_ns for p in entry.iterdir()}
    other = HERE.model_copy(update={"lr": 1e-5})
    assert run(job(small_pairs, tiny_turbo, digits, tmp_path / "two", **{**options, "train": other})) == 0
    assert (tmp_path / "two" / "cycle_01" / "assignments").resolve() == entry
    assert {p.name: p.stat().st_mtime_ns for p in entry.iterdir()} == made
    summaries = [json.loads((tmp_path / name / "em_summary.json").read_text()) for name in ("one", "two")]
    assert summaries[0]["cycles"][0]["assign"] == summaries[1]["cycles"][0]["assign"]


@pytest.mark.usefixtures("ray_session")
def test_pairs_are_held_out_of_both_steps_and_those_that_are_trained_on_all_the_same_are_counted(
    tiny_turbo, digits, tmp_path, capsys
):
    out, pairs = tmp_path / "run", copy_pairs(digits, tmp_path / "pairs", 48)
    part = Part.of("heldout:9", 48)
    held = list(filter(part.within(0, 48), range(48)))
    again = next(i for i in range(48) if i not in held)
    shutil.copy(pairs / "images" / f"{held[0]:04d}.png", pairs / "images" / f"{again:04d}.png")
    one = job(pairs, tiny_turbo, digits, out, heldout="auto", cycles=1, baseline=False, **ALL_HERE)
    assert run(one) == 0
    said = capsys.readouterr().err
    assert "held-out pairs: 9 of 48 rows, used only for the evaluation; --heldout none trains on them too" in said
    assert said.count("1 of the 9 held-out images is also a training image, so the figures look too good") == 1
    trained = Assignments(out / "cycle_01" / "assignments")
    rows = trained.rows(range(len(trained)), ["image", "sample_id"])
    assert [row["image"] for row in rows] == [f"images/{i:04d}.png" for i in range(48) if i not in held]
    assert [int(row["sample_id"][:6]) for row in rows] == [i for i in range(48) if i not in held]
    judged = pq.read_table(out / "evaluation" / "evaluation.parquet", filters=[("model", "==", "base")])
    assert judged["image"].to_pylist() == [f"images/{i:04d}.png" for i in held]
    summary = json.loads((out / "em_summary.json").read_text())
    assert (summary["heldout_in_training"], summary["recognised_heldout"]["part"]) == (1, "heldout:9")
    assert "1 of the 9 held-out images is also a training image" in (out / "report.html").read_text()
    assert f"images/{held[0]:04d}.png" in (out / "report.html").read_text()
    assert describe(one)["heldout"] == "9"


def test_every_step_works_at_the_size_that_was_requested(small_pairs, tiny_turbo, digits, tmp_path):
    """Also the steps that follow with their own verbs."""
    out, size = tmp_path / "run", "40x24"
    heldout = copy_pairs(digits, tmp_path / "heldout", 12)
    judge = ALL_HERE["evaluate"].model_copy(update={"rows": 12})
    one = job(
        small_pairs, tiny_turbo, digits, out, cycles=1, size=size, heldout=heldout, **{**ALL_HERE, "evaluate": judge}
    )
    assert run(one) == 0
    first = out / "cycle_01"
    assignments = Assignments(first / "assignments")
    assert assignments.plan.framing((32, 32)).sizes == ((24, 40),)
    assert assignments.noise([0], (4, 6, 10)).shape == (1, 4, 6, 10)
    assert assignments.targets([0], (4, 6, 10)).shape == (1, 4, 6, 10)
    assert "height=24, width=40" in (first / "train" / "checkpoint-final" / "README.md").read_text()
    summary = json.loads((out / "em_summary.json").read_text())
    assert set(summary["evaluation"]) == {"base", "direct", "cycle_01"}
    assert ending(one, 0)[-1].endswith(f" --size {size} --out {out}/images")
    assert Evaluation.read(out / "evaluation" / EVALUATION).image_size == (24, 40)
    # Adam works on three updates: the model has moved, and by little.
    assert 0 < summary["evaluation"]["cycle_01"]["drift"]["value"] < 0.2

    train = {"model": tiny_turbo, "assignments": str(first / "assignments"), "pairs": str(small_pairs)}
    with pytest.raises(UserError, match=r"--size 32x32: .* was made for --size 40x24; leave --size out"):
        run_train(TrainJob(**HERE.model_dump(), **train, out=tmp_path / "other", size="32x32"))
    validation = HERE.model_copy(update={"validation": str(first / "assignments")})
    unsized = {"model": tiny_turbo, "pairs": str(small_pairs), "size": None, "out": tmp_path / "other"}
    with pytest.raises(UserError, match=r"made for --size 40x24, and the training images have the model's own size"):
        run_train(TrainJob(**{**validation.model_dump(), "noise": "random"}, **unsized))
    where = {"pairs": str(small_pairs), "model": tiny_turbo, "out": str(tmp_path / "next")}
    with pytest.raises(UserError, match=r"--warm-start .* does not fit this run: size was '40x24', now None"):
        run_assign(AssignJob(**ALL_HERE["assign"].model_dump(), **where, warm_start=str(first / "assignments")))


@pytest.mark.parametrize(("drift", "lines"), [(0.001, 1), (0.0099, 1), (0.02, 0), (None, 0)])
def test_a_model_that_hardly_changed_is_reported(drift, lines):
    train = TrainSummary.model_construct(updates=40)
    judged = {} if drift is None else {"drift": Estimate(drift, drift, drift, 12)}
    cycles = [Cycle.model_construct(cycle=n, assign=None, train=train) for n in (1, 2)]
    summary = EmSummary.model_construct(cycles=cycles, evaluation={"base": {}, "cycle_02": judged})
    said = hardly_changed(summary)
    assert len(said) == lines
    if said:
        assert f"by {drift:.2g} (drift) after 80 updates; train longer or at a higher rate" in said[0]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_run_that_cut_its_own_pairs_goes_on_without_figures_where_too_few_can_be_judged(
    tiny_turbo, digits, tmp_path, capsys
):
    pairs = copy_pairs(digits, tmp_path / "pairs", 40)
    within = Part.of("heldout:8", 40).within(0, 40)
    (pairs / "images" / f"{next(filter(within, range(40))):04d}.png").unlink()
    options = {"cycles": 1, "baseline": False, **ALL_HERE}
    assert run(job(pairs, tiny_turbo, digits, tmp_path / "run", heldout="auto", **options)) == 0
    assert "no evaluation: 7 of 8 held-out rows were judged" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "em_summary.json").read_text())["evaluation"] is None
    with pytest.raises(RunFailed, match="7 of 8 held-out rows were judged"):
        run(job(pairs, tiny_turbo, digits, tmp_path / "asked", heldout="8", **options))


def test_what_is_held_out_by_itself_depends_on_the_number_of_rows(small_pairs, tiny_turbo, digits, tmp_path, capsys):
    one = job(small_pairs, tiny_turbo, digits, tmp_path, heldout="auto", evaluate=EvaluateSettings())
    numbers = {24: "none", 39: "none", 40: "8", 100: "16", 512: "26", 10**8: "128"}
    assert {rows: settled(one, rows).heldout for rows in numbers} == numbers
    assert "of 24 rows that is fewer than 8 (--heldout 8 holds them out anyway)" in capsys.readouterr().err
    for share, rows in (("5%", 100), ("7", 100), ("24", 24)):
        with pytest.raises(UserError, match=r"figures need 8 rows|cannot hold out 24 of 24"):
            settled(one.model_copy(update={"heldout": share}), rows)
    with pytest.raises(UserError, match="em divides the pairs by --heldout"):
        settled(one.model_copy(update={"part": "training:5%"}), 100)


def test_held_out_pairs_that_are_the_training_pairs_are_said_before_any_work(
    small_pairs, tiny_turbo, digits, tmp_path, capsys
):
    describe(job(small_pairs, tiny_turbo, digits, tmp_path / "run", heldout=small_pairs))
    assert "held-out pairs: they are the training pairs" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_cycles_go_on_with_one_adapter_held_to_the_last_and_watched_on_the_held_out_pairs(
    small_pairs, tiny_turbo, digits, tmp_path
):
    out, heldout = tmp_path / "run", copy_pairs(digits, tmp_path / "heldout", 12)
    options = {
        "baseline": False,
        "preserve_to": "last",
        "validate_on_heldout": True,
        "heldout": heldout,
        "warm_start": True,
    }
    tuned = {"lora_rank": 2, "lr": 3e-2, "log_every": 1, "preserve_latent_weight": 0.5, "center_noise": False}
    train = HERE.model_copy(update=tuned)
    judge = EVALUATE.model_copy(update={"rows": 12})
    assert run(job(small_pairs, tiny_turbo, digits, out, train=train, evaluate=judge, **options)) == 0
    folders = [out / f"cycle_0{k}" / "train" for k in (1, 2)]
    plans = [read_plan(open_store(folder), TrainPlan) for folder in folders]
    for plan, model in zip(plans, (tiny_turbo, folders[0] / "checkpoint-final"), strict=True):
        assert plan.model_fingerprint == plan.preserve_fingerprint == ModelFolder.open(model).fingerprint
    assert lora_of(ModelFolder.open(folders[1] / "checkpoint-final")).rank == 2
    assert ModelFolder.open(folders[1] / "checkpoint-final").base.path == tiny_turbo
    # Held to the model of its own cycle, cycle 2 begins without a drift; and it begins where cycle 1 ended.
    said = [json.loads((folder / "train_summary.json").read_text())["validations"] for folder in folders]
    for folder, figures in zip(folders, said, strict=True):
        first = json.loads((folder / "train_history.jsonl").read_text().splitlines()[1])
        assert (first["update"], first["preserve_latent"]) == (1, pytest.approx(0, abs=1e-6))
        assert [f["update"] for f in figures] == [0, 2]
        assert figures[0]["drift"] == pytest.approx(0, abs=1e-6)
    assert said[1][0]["latent"] == pytest.approx(said[0][-1]["latent"], rel=1e-4)
    # Its E-step starts from the noise that cycle 1 assigned, and the images are nearer to it than to the base noise.
    matched = [read_plan(open_store(out / f"cycle_0{k}" / "assignments"), ReconstructionPlan) for k in (1, 2)]
    assert (matched[0].warm_start, matched[1].warm_start) == (None, matched[0].run_fingerprint)
    held = json.loads((out / "heldout_assignments" / "summary.json").read_text())
    assert said[0][0]["latent"] == pytest.approx(held["mean_loss"], rel=1e-3)
    summary = json.loads((out / "em_summary.json").read_text())
    starts = [cycle["assign"]["mean_initial_loss"] for cycle in summary["cycles"]]
    assert starts[1] < starts[0]
    assert list(summary["evaluation"]) == ["base", "cycle_01", "cycle_02"]
    drifts = [summary["evaluation"][name]["drift"]["value"] for name in ("cycle_01", "cycle_02")]
    assert min(drifts) > 0


def test_the_plan_counts_the_work_and_writes_nothing(small_pairs, tiny_turbo, digits, tmp_path):
    said = describe(job(small_pairs, tiny_turbo, digits, tmp_path / "run"))
    assert (said["evaluations_of_the_e_steps"], said["updates"]) == (2 * 24 * 2, 2 * 2 * 2)
    # Only the first cycle chooses among base noises; without a warm start each does. Three forwards count as an evaluation.
    choosing = {"assign": ASSIGN.model_copy(update={"candidates": 4})}
    for warm_start, draws in ((True, 1), (False, 2)):
        again = describe(job(small_pairs, tiny_turbo, digits, tmp_path / "run", warm_start=warm_start, **choosing))
        assert again["evaluations_of_the_e_steps"] == 2 * 24 * 2 + draws * 24 * 4 // 3
    assert said["evaluations_of_matching"] == 0
    online = {"train": TRAIN.model_copy(update={"noise": "online", "match_steps": "4"})}
    again = describe(job(small_pairs, tiny_turbo, digits, tmp_path / "run", **online))
    assert again["evaluations_of_matching"] == 2 * (2 * 12 * 4 + MEASURED_WITH)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"train": TRAIN.model_copy(update={"batch_size": 25})}, "25 is more than the 24 rows"),
        ({"train": TRAIN.model_copy(update={"noise": "random"})}, "em accepts matched and online"),
        ({"assign": ASSIGN.model_copy(update={"patch_size": 5})}, "patch_size 5 does not divide"),
        ({"heldout": "nowhere"}, "no pair set at nowhere"),
        (
            {"evaluate": EVALUATE.model_copy(update={"features": "inception"})},
            "inception.* should hold weights-inception",
        ),
        (
            {"train": TRAIN.model_copy(update={"num_workers": 5})},
            "--train.batch-size: 12 does not divide among 5 workers",
        ),
        ({"heldout": None, "validate_on_heldout": True}, "--validate-on-heldout needs --heldout"),
        (
            {"assign": ASSIGN.model_copy(update={"store_latents": False}), "validate_on_heldout": True},
            "needs --heldout and --assign.store-latents",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(small_pairs, tiny_turbo, digits, tmp_path, options, says):
    with pytest.raises(UserError, match=says):
        run(job(small_pairs, tiny_turbo, digits, tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("ray_session")
def test_with_a_folder_of_embeddings_the_second_cycle_encodes_nothing(
    small_pairs, tiny_turbo, digits, tmp_path, monkeypatch
):
    encoded = count_encodings(monkeypatch)
    options = {**ALL_HERE, "heldout": None, "baseline": True, "prompt_embeddings": tmp_path / "embeddings"}
    assert run(job(small_pairs, tiny_turbo, digits, tmp_path / "run", **options)) == 0
    prompts = Assignments(tmp_path / "run" / "cycle_02" / "assignments").prompts()
    # The E-step of the first cycle encodes those of the pairs, its M-step those that hold the model.
    assert encoded == {"pass": dict.fromkeys([*prompts, *general_prompts()], 1), "assign": {}, "train": {}}
    models = [ModelFolder.open(tmp_path / "run" / f"cycle_0{k}" / "train" / "checkpoint-final") for k in (1, 2)]
    assert len({model.fingerprint for model in models}) == 2
