import random

import pytest

from rayjobs.sweep.pareto import choose, pareto_front


def dominates(a, b):
    return a[0] <= b[0] and a[1] <= b[1] and a != b


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_no_other_point_dominates(seed):
    draw = random.Random(seed)
    # Few distinct values, so that points are equal in one objective or in both.
    points = {i: (draw.randrange(6) / 2, draw.randrange(6) / 2) for i in range(draw.randrange(1, 25))}
    expected = {k for k, p in points.items() if not any(dominates(q, p) for q in points.values())}
    front = pareto_front(points)
    assert set(front) == expected
    assert [points[k] for k in front] == sorted(points[k] for k in front)


def test_the_choice_is_the_best_fit_within_the_limit():
    points = {"far": (0.1, 3.0), "near": (0.3, 1.0), "middle": (0.2, 2.0), "bad": (0.9, 0.5)}
    assert choose(points, 2.0) == "middle"
    assert choose(points, 1.9) == "near"
    assert choose(points, 0.4) is None
