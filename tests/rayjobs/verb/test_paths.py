"""Paths among the options: read as a shell reads them, refused where blank, made absolute, of every verb."""

import json
import typing
from pathlib import Path

import pytest
from pydantic import BaseModel

from ortho_core.errors import UserError
from ortho_core.storage.location import LocalPath, Location, Place
from rayjobs.cli import VERBS
from rayjobs.em.config import EmJob
from rayjobs.evaluate.config import EvaluateJob
from rayjobs.reward.config import RewardJob
from rayjobs.sweep.space import Choices, parse_space
from rayjobs.train.config import TrainJob
from rayjobs.verb.help import leaves
from rayjobs.verb.options import parse
from rayjobs.verb.paths import expand, located, relative_paths

EM = ["--pairs", "p", "--model", "m", "--work-dir", "w"]
TRAIN = ["--assignments", "a", "--model", "m", "--out", "o"]
#: What verbs require besides places.
REQUIRED = {"prompt": "x", "reward": "clip", "data": "mnist", "command": ["assign"]}


def parts(kind, metadata=()):
    """Every type that `kind` is made of, with what it is annotated with."""
    if typing.get_origin(kind) is typing.Annotated:
        kind, *metadata = typing.get_args(kind)
    return [(kind, tuple(metadata)), *(part for each in typing.get_args(kind) for part in parts(each))]


def is_place(kind, metadata):
    return any(isinstance(mark, Place) for mark in metadata)


def places_of(model):
    """The options that are or contain places, each with a relative one."""
    for name, field in leaves(model):
        found = parts(field.annotation, field.metadata)
        if any(is_place(*part) for part in found):
            is_mapping = any(typing.get_origin(kind) is dict for kind, _ in found)
            yield name, {"a": "some/where"} if is_mapping else "some/where"


def job_of(verb):
    """A job of the verb with a relative path wherever it takes one."""
    model = VERBS[verb].model()
    values = {name: value for name, value in REQUIRED.items() if name in model.model_fields}
    for name, value in places_of(model):
        group = values
        *groups, last = name.split(".")
        for each in groups:
            group = group.setdefault(each, {})
        group[last] = value
    return model.model_validate(values)


@pytest.mark.parametrize("verb", VERBS)
def test_every_path_of_every_verb_is_of_a_type_that_is_located(verb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = job_of(verb)
    bare = [
        name
        for name, field in leaves(type(job))
        for kind, metadata in parts(field.annotation, field.metadata)
        if kind is Path and not is_place(kind, metadata)
    ]
    assert bare == []
    before = json.dumps(job.model_dump(mode="json"))
    assert before.count('"some/where"') == len(list(places_of(type(job)))) == len(relative_paths(job))
    after = located(job)
    assert type(after) is type(job)
    assert json.dumps(after.model_dump(mode="json")) == before.replace('"some', f'"{tmp_path}/some')
    assert located(after) == after
    assert relative_paths(after) == []


def test_names_and_urls_are_no_paths_and_folders_in_their_place_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = {"pairs": "s3://bucket/x/y.jsonl", "features": "tiny-clip", "cmmd_features": "inception"}
    job = located(EvaluateJob(model={"base": "m"}, out="/o", **kept))
    assert {name: getattr(job, name) for name in kept} == kept
    assert job.model == {"base": tmp_path / "m"}
    for uri in ("databricks", "http://host:5000", "sqlite:///runs.db", "file:runs"):
        assert located(TrainJob(assignments="a", model="m", out="o", mlflow=uri)).mlflow == uri
    assert located(TrainJob(assignments="a", model="m", out="o", mlflow="runs")).mlflow == str(tmp_path / "runs")


def test_paths_in_lists_and_tuples_are_located(tmp_path, monkeypatch):
    class Several(BaseModel):
        files: tuple[LocalPath, ...]
        tables: list[Location | None] = []

    monkeypatch.chdir(tmp_path)
    job = located(Several(files=["a", "/b"], tables=["c", None, "s3://d"]))
    assert job.files == (tmp_path / "a", Path("/b"))
    assert job.tables == [str(tmp_path / "c"), None, "s3://d"]
    with pytest.raises(ValueError, match="an empty path is not accepted"):
        Several(files=["a", " "])


def test_home_and_variables_are_replaced_in_options_and_yaml_and_in_mappings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("RUN_7", "/data/run")
    job = parse(EmJob, [*EM, "--pairs", "~/pairs", "--work-dir", "$RUN_7/em", "--train.mlflow", "${RUN_7}s"], "em").job
    assert (job.pairs, str(job.work_dir), job.train.mlflow) == ("/home/me/pairs", "/data/run/em", "/data/runs")
    (tmp_path / "job.yaml").write_text(
        "pairs: s3://bucket/$RUN_7\nevaluate: {reward_folders: {clip: ~/clip}, features: $RUN_7/dino}\n"
    )
    job = parse(EmJob, ["--model", "~", "--work-dir", "w", "--config", "job.yaml"], "em").job
    assert (job.pairs, str(job.model)) == ("s3://bucket/$RUN_7", "/home/me")
    assert (job.evaluate.reward_folders, job.evaluate.features) == ({"clip": "/home/me/clip"}, "/data/run/dino")
    models = parse(EvaluateJob, ["--model", "$RUN_7,b=~/b", "--pairs", "p", "--out", "o"], "evaluate").job.model
    assert models == {"run": Path("/data/run"), "b": Path("/home/me/b")}
    space = parse_space({"train.preserve_prompts": "~/a.txt,b.txt"}, job, {})
    assert space == {"train.preserve_prompts": Choices(("/home/me/a.txt", str(tmp_path / "b.txt")))}


def test_what_exists_as_it_is_written_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("~", "$HOME", "$NOT_SET", "cost$5"):
        (tmp_path / name).mkdir()
        assert expand(name) == name
    assert expand("new$5") == "new$5"
    assert expand("./~new") == "./~new"


def test_a_value_is_not_read_a_second_time(monkeypatch):
    monkeypatch.setenv("ODD", "~/$HOME")
    assert expand("/a/$ODD") == "/a/~/$HOME"


@pytest.mark.parametrize(
    ("model", "argv", "says"),
    [
        (EmJob, [*EM, "--pairs", ""], "--pairs: an empty path is not accepted"),
        (EmJob, [*EM, "--work-dir", "  "], "--work-dir: an empty path is not accepted"),
        (EmJob, [*EM, "--image-root="], "--image-root: an empty path is not accepted"),
        (EmJob, [*EM, "--evaluate.features", ""], "--evaluate.features: an empty path is not accepted"),
        (EmJob, [*EM, "--config", ""], "--config: an empty path is not accepted"),
        (EmJob, [*EM, "--config", "blank.yaml"], "--evaluate.reward-folders: an empty path is not accepted"),
        (EmJob, [*EM, "--evaluate.reward-folders", "clip="], "--evaluate.reward-folders: an empty path is not accepted"),
        (EvaluateJob, ["--model", "a,", "--pairs", "p", "--out", "o"], "--model: an empty path is not accepted"),
        (TrainJob, [*TRAIN, "--mlflow", ""], "--mlflow: an empty path is not accepted"),
        (TrainJob, [*TRAIN, "--out", "$NOPE/x"], "--out: '$NOPE/x' is not accepted: the environment variable 'NOPE' is not set"),
        (TrainJob, [*TRAIN, "--out", "a/${NO-PE}"], "the environment variable 'NO-PE' is not set"),
        (TrainJob, [*TRAIN, "--out", "$VOID/x"], "the environment variable 'VOID' is empty"),
        (TrainJob, [*TRAIN, "--out", "~nobody-of-this-name/x"], "there is no user 'nobody-of-this-name'"),
        (TrainJob, [*TRAIN, "--config", "$NOPE.yaml"], "--config: '$NOPE.yaml' is not accepted: the environment variable 'NOPE'"),
        (
            RewardJob,
            ["--model", "m", "--reward", "clip", "--out", "o", "--reward-folders", "clip=$NOPE"],
            "--reward-folders: '$NOPE' is not accepted: the environment variable 'NOPE' is not set",
        ),
    ],
)  # fmt: skip
def test_what_is_blank_or_leads_nowhere_is_refused_in_one_line(model, argv, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NOPE", raising=False)
    monkeypatch.setenv("VOID", "")
    Path("blank.yaml").write_text("evaluate: {reward-folders: {clip: ' '}}\n")
    with pytest.raises(UserError) as raised:
        parse(model, argv, "verb")
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_for_another_machine_paths_stay_as_they_are_written(monkeypatch):
    monkeypatch.delenv("NOPE", raising=False)
    argv = [
        *TRAIN,
        "--model",
        "~/m",
        "--out",
        "$NOPE/o",
        "--assignments",
        "/a",
        "--validation",
        "s3://b",
        "--pairs",
        "a/$NOPE",
    ]
    job = parse(TrainJob, argv, "train", expand=None).job
    assert (str(job.model), str(job.out)) == ("~/m", "$NOPE/o")
    assert relative_paths(job) == [("--pairs", Path("a/$NOPE"))]
