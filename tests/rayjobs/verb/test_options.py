import pytest
import yaml

from ortho_core.errors import UserError
from rayjobs.em.config import EmJob
from rayjobs.evaluate.config import EvaluateJob
from rayjobs.look.config import LookJob
from rayjobs.train.config import TrainJob
from rayjobs.verb.options import as_yaml, parse
from rayjobs.verb.presets import PRESETS
from rayjobs.verb.table import VERBS

NEEDED = ["--pairs", "p", "--model", "m", "--work-dir", "w"]


def em(*argv):
    return parse(EmJob, [*NEEDED, *argv], "em").job


def test_the_command_line_wins_over_the_file_and_both_over_the_defaults(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text("assign:\n  patch-size: 4\n  steps: 7\ntrain.lr: 0.5\nwork_dir: elsewhere\n")
    job = em("--config", str(file), "--assign.steps", "9")
    assert (job.assign.patch_size, job.assign.steps, job.train.lr) == (4, 9, 0.5)
    assert str(job.work_dir) == "w"
    assert job.assign.optimizer == "lbfgs"


def test_dashes_and_underscores_and_equals_are_the_same():
    assert em("--assign.patch-size=4") == em("--assign.patch_size", "4") == em("--assign.patch_size=4")


def test_a_preset_sets_what_nobody_set(tmp_path):
    usual, fast = em(), em("--preset", "fast")
    assert (fast.cycles, fast.train.epochs) == (2, 4)
    assert fast.model_copy(update={"cycles": 4}).assign == usual.assign
    assert em("--preset", "balanced") == usual
    assert em("--preset", "fast", "--cycles", "3").cycles == 3
    (tmp_path / "job.yaml").write_text("preset: fast\ntrain:\n  epochs: 9\n")
    job = em("--config", str(tmp_path / "job.yaml"))
    assert (job.cycles, job.train.epochs) == (2, 9)
    assert em("--config", str(tmp_path / "job.yaml"), "--preset", "thorough").cycles == 4
    with pytest.raises(UserError, match="--preset: 'slow' is not accepted: fast, balanced, thorough"):
        em("--preset", "slow")
    with pytest.raises(UserError, match="unknown option 'preset'"):
        parse(TrainJob, ["--model", "m", "--out", "o", "--preset", "fast"], "train")


@pytest.mark.parametrize("verb", PRESETS)
def test_every_preset_is_of_options_that_there_are(verb):
    model = VERBS[verb].model()
    required = (
        {"pairs": "p", "model": "m", "out": "o"} if verb == "assign" else {"pairs": "p", "model": "m", "work-dir": "w"}
    )
    for name, values in PRESETS[verb].items():
        argv = [each for option, value in required.items() for each in (f"--{option}", value)]
        job = parse(model, [*argv, "--preset", name], verb).job
        for option, value in values.items():
            found = job
            for part in option.split("."):
                found = getattr(found, part)
            assert found == value


def test_flags_and_none():
    assert em("--baseline").baseline is True
    assert em("--baseline", "false").baseline is False
    assert em("--assign.gpus-per-worker", "none").assign.gpus_per_worker is None
    assert em("--assign.gpus-per-worker", "0.5").assign.gpus_per_worker == 0.5


def test_a_verb_that_uses_ray_can_be_told_to_start_its_own():
    assert parse(EmJob, [*NEEDED, "--local"], "em").local
    assert not parse(EmJob, NEEDED, "em").local
    with pytest.raises(UserError, match="unknown option 'local'"):
        parse(LookJob, ["--pairs", "p", "--local"], "look")


def test_what_is_printed_is_what_is_read_back(tmp_path):
    job = em("--assign.steps", "9", "--train.lr", "3e-4")
    (tmp_path / "job.yaml").write_text(as_yaml(job))
    assert parse(EmJob, ["--config", str(tmp_path / "job.yaml")], "em").job == job


def train(*argv):
    return parse(TrainJob, ["--assignments", "a", "--model", "m", "--out", "o", *argv], "train").job


def test_lists_and_files_of_training_are_read_and_printed_so_that_they_are_read_back(tmp_path):
    assert train().lora_targets is None
    job = train("--lora-targets", "to_q, to_k", "--preserve-prompts", "some/file", "--lora-rank", "4", "--ema")
    assert (job.lora_targets, job.lora_rank, str(job.preserve_prompts), job.ema) == (
        ("to_q", "to_k"),
        4.0,
        "some/file",
        True,
    )
    assert train("--preserve-prompts", "training").preserve_file is None
    (tmp_path / "job.yaml").write_text(as_yaml(job))
    assert yaml.safe_load(as_yaml(job))["lora_targets"] == ["to_q", "to_k"]
    assert parse(TrainJob, ["--config", str(tmp_path / "job.yaml")], "train").job == job
    nested = em("--train.lora-targets", "to_q,to_k", "--train.lora-rank", "2")
    assert nested.train.lora_targets == ("to_q", "to_k")
    (tmp_path / "em.yaml").write_text(as_yaml(nested))
    assert parse(EmJob, ["--config", str(tmp_path / "em.yaml")], "em").job == nested


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--parallel", "tp"], "--parallel: 'tp' is not accepted: 'ddp' or 'fsdp'"),
        (["--ema-decay", "1"], "--ema-decay: '1' is not accepted: less than 1"),
        (["--gradient-accumulation-steps", "0"], "--gradient-accumulation-steps: '0' is not accepted: greater than or"),
        (["--lora-alpha", "0"], "--lora-alpha: '0' is not accepted: greater than 0"),
        (["--wandb", "a/b/c"], "'a/b/c' is not a project of Weights & Biases"),
        (["--preserve-batchsize", "3"], "did you mean --preserve-batch-size?"),
    ],
)
def test_what_is_wrong_with_training_options_is_said_in_one_line(argv, says):
    with pytest.raises(UserError) as raised:
        train(*argv)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_models_are_named_or_take_their_folders_name():
    argv = ["--pairs", "p", "--out", "o"]
    job = parse(EvaluateJob, [*argv, "--model", "base=a/b,c/d"], "evaluate").job
    assert {k: str(v) for k, v in job.model.items()} == {"base": "a/b", "d": "c/d"}
    with pytest.raises(UserError, match="two models of the same name"):
        parse(EvaluateJob, [*argv, "--model", "a/x,b/x"], "evaluate")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--assign.stepz", "3"], "unknown option 'assign.stepz'; did you mean --assign.steps?"),
        (["--assign.steps", "many"], "--assign.steps: 'many' is not accepted: a valid integer"),
        (["--assign.steps", "0"], "--assign.steps: '0' is not accepted: greater than or equal to 1"),
        (["--assign.optimizer", "sgd"], "--assign.optimizer: 'sgd' is not accepted: 'lbfgs' or 'adamw'"),
        (["--train.lr", "nan"], "--train.lr: 'nan' is not accepted: "),
        (["--assign.latent-loss-weight", "inf"], "--assign.latent-loss-weight: 'inf' is not accepted: "),
        (["--assign.steps"], "expected one argument"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml: No such file"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(argv, says):
    with pytest.raises(UserError) as raised:
        em(*argv)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_missing_is_named():
    with pytest.raises(UserError, match="--model is required; --work-dir is required"):
        parse(EmJob, ["--pairs", "p"], "em")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("- 1", "holds a list; accepted: a mapping"),
        ("a: [", "is not YAML"),
        ("assign:\n  patchsize: 2", "unknown option 'assign.patchsize'; did you mean --assign.patch-size?"),
        ("assign: 3", "--assign: 3 is not accepted"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, content, says):
    (tmp_path / "job.yaml").write_text(content)
    with pytest.raises(UserError, match=says.replace("?", r"\?")):
        em("--config", str(tmp_path / "job.yaml"))


def test_yaml_that_came_out_is_plain():
    assert yaml.safe_load(as_yaml(em()))["pairs"] == "p"


def test_the_pairs_of_a_look_need_no_name_and_what_is_too_much_is_refused():
    jobs = [
        parse(LookJob, argv, "look").job
        for argv in (["p", "--rows", "3"], ["--rows", "3", "p"], ["--rows=3", "--pairs", "p"])
    ]
    assert [(job.pairs, job.rows) for job in jobs] == [("p", 3)] * 3
    for argv, says in (
        (["p", "q"], "unknown option 'q'"),
        (["q", "--pairs", "p"], "unknown option 'q'"),
        (["--row", "3"], "rows"),
    ):
        with pytest.raises(UserError, match=says):
            parse(LookJob, argv, "look")
