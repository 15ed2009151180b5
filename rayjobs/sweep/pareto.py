"""The Pareto front of results with two objectives, both to be minimised, and the choice under a limit on the second."""

from collections.abc import Mapping
from typing import TypeVar

K = TypeVar("K")


def pareto_front(points: Mapping[K, tuple[float, float]]) -> list[K]:
    """The keys that no other point dominates, in order of the first objective.

    A point dominates another if it is not larger in either objective and smaller in one. Equal points all stay.
    """
    front: list[K] = []
    best = float("inf")
    ordered = sorted(points, key=lambda key: points[key])
    for key in ordered:
        second = points[key][1]
        if second < best or (front and points[key] == points[front[-1]]):
            front.append(key)
            best = second
    return front


def choose(points: Mapping[K, tuple[float, float]], limit: float) -> K | None:
    """The key with the smallest first objective among those whose second is at most `limit`; None if there is none."""
    allowed = {key: point for key, point in points.items() if point[1] <= limit}
    return min(allowed, key=lambda key: allowed[key]) if allowed else None
