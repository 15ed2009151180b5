import numpy as np
import pytest

from ortho_core.errors import UserError
from rayjobs.em.config import EmJob
from rayjobs.sweep.space import Choices, Range, draw, grid, parse_space, short_names, value_of, with_values

BASE = EmJob(pairs="p", model="m", work_dir="w")
FIXED = {"pairs": "is the same for all trials", "evaluate": "decides how trials are judged"}


def space(**given):
    return parse_space(given, BASE, FIXED)


def test_texts_become_what_their_field_makes_of_them():
    found = parse_space(
        {
            "train.lr": "1e-4, 1e-3",
            "assign": {"patch_size": "2,4", "regions": [1, 2]},
            "train": {"preserve-prompts": "training", "lora-alpha": "none"},
            "warm_start": "true,false",
            "cycles": "1:3",
            "train.preserve_latent_weight": "log:0.01:1",
        },
        BASE,
        FIXED,
    )
    assert found == {
        "train.lr": Choices((1e-4, 1e-3)),
        "assign.patch_size": Choices((2, 4)),
        "assign.regions": Choices((1, 2)),
        "train.preserve_prompts": Choices(("training",)),
        "train.lora_alpha": Choices((None,)),
        "warm_start": Choices((True, False)),
        "cycles": Range(1, 3, whole=True),
        "train.preserve_latent_weight": Range(0.01, 1, log=True),
    }


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"train.lrr": "1,2"}, r"did you mean --sweep.train.lr\?"),
        ({"assign": {"patchsize": "2"}}, r"did you mean --sweep.assign.patch-size\?"),
        ({"train.lr": ""}, "--sweep.train.lr: '' is empty"),
        ({"train.lr": []}, "is empty"),
        ({"train.lr": "1e-3,,1e-4"}, "has an empty value"),
        ({"train.lr": "1e-3,-1"}, "--sweep.train.lr: '-1' is not accepted"),
        ({"train.lr": "1e-3,fast"}, "'fast' is not accepted"),
        ({"train.lr": "1e-3,0.001"}, "has the same value twice"),
        ({"train.lr": "1e-3:1e-3"}, "is empty; accepted: LOW below HIGH"),
        ({"train.lr": "log:0:1"}, "a LOW above 0"),
        ({"train.lr": "0:1"}, "'?0.0'? is not accepted"),
        ({"train.lr": "a:b"}, "accepted: values A,B,C, a range LOW:HIGH, or log:LOW:HIGH"),
        ({"cycles": "1:2.5"}, "whole LOW and HIGH"),
        ({"warm_start": "0:1"}, "is not a number and has no range"),
        ({"train.lr": {"low": 1}}, "accepted: values A,B,C"),
        ({"pairs": "a,b"}, "--sweep.pairs: is the same for all trials"),
        ({"evaluate.rows": "8,16"}, "decides how trials are judged"),
    ],
)
def test_what_cannot_be_varied_is_refused_in_one_line(given, says):
    with pytest.raises(UserError, match=says) as refusal:
        parse_space(given, BASE, FIXED)
    assert "\n" not in str(refusal.value)


def test_a_grid_is_every_combination_and_takes_no_range():
    both = space(**{"train.lr": [1e-3, 1e-4], "assign.patch_size": [2, 4]})
    assert [tuple(point.values()) for point in grid(both)] == [(1e-3, 2), (1e-3, 4), (1e-4, 2), (1e-4, 4)]
    with pytest.raises(UserError, match=r"--sweep.train.lr: a grid needs values"):
        grid(space(**{"train.lr": "1e-4:1e-3"}))


def test_draws_lie_within_their_range_and_more_of_them_begin_with_the_same():
    given = space(
        **{"train.lr": "log:1e-5:1e-1", "cycles": "1:3", "assign.patch_size": "2,4", "train.max_grad_norm": "0.5:2"}
    )
    points = draw(given, 400, seed=3)
    assert points[:50] == draw(given, 50, seed=3)
    assert points[:50] != draw(given, 50, seed=4)
    rates = np.array([p["train.lr"] for p in points])
    assert 1e-5 <= rates.min() < rates.max() <= 1e-1
    # As many below as above the geometric mean: 200 of 400, with a deviation of 10.
    assert 150 < (rates < 1e-3).sum() < 250
    assert {p["cycles"] for p in points} == {1, 2, 3}
    assert {p["assign.patch_size"] for p in points} == {2, 4}


def test_no_point_is_drawn_twice():
    few = space(**{"assign.patch_size": "2,4", "cycles": "1:2"})
    assert sorted(map(repr, draw(few, 10, seed=0))) == sorted(
        map(repr, grid(space(**{"assign.patch_size": "2,4", "cycles": "1,2"})))
    )


def test_values_are_laid_over_the_configuration():
    job = with_values(BASE, {"train.lr": "1e-3", "cycles": 3})
    assert (value_of(job, "train.lr"), job.cycles) == (1e-3, 3)
    assert job.model_copy(update={"train": BASE.train, "cycles": BASE.cycles}) == BASE


def test_a_name_is_short_where_that_tells_it_from_the_others():
    assert short_names(["train.lr", "assign.lr", "cycles", "assign.patch_size"]) == {
        "train.lr": "train.lr",
        "assign.lr": "assign.lr",
        "cycles": "cycles",
        "assign.patch_size": "patch_size",
    }
