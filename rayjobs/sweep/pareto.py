"""Two objectives, both to be small: which of several results no other beats in both, and which to choose under a limit."""

from collections.abc import Mapping
from typing import TypeVar

K = TypeVar("K")


def pareto_front(points: Mapping[K, tuple[float, float]]) -> list[K]:
    """The keys that no other point dominates, by the first objective, the smallest first.

    A point dominates another if it is no larger in both objectives and smaller in one; of equal points all stay.
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
