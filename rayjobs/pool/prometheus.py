"""Prometheus metrics of the E-step's workers, exported by Ray on each node's metrics port."""

from ray.util.metrics import Counter, Gauge

from ortho_core.records.parts import ShardResult
from rayjobs.pool.protocol import Usage


class WorkerMetrics:
    """Counters and gauges of one worker; Ray adds the node and the worker as labels, and `ray_` before each name."""

    def __init__(self) -> None:
        self.rows = Counter("ortho_rows_assigned", "Rows with assigned noise")
        self.quarantined = Counter("ortho_rows_quarantined", "Rows that could not be used", tag_keys=("reason",))
        self.evaluations = Counter("ortho_evaluations", "Generator forward + backward passes of one image")
        self.forwards = Counter(
            "ortho_candidate_forwards", "Generator forward passes of one image to choose its base noise"
        )
        self.wait = Counter("ortho_wait_seconds", "Seconds in which the engine waited", tag_keys=("stage",))
        self.occupancy = Gauge(
            "ortho_slot_occupancy", "Share of the computed slots that held an image, since the start"
        )
        self.slots = Gauge("ortho_slots", "Images per batch")
        self.killed = Counter("ortho_decoders_killed", "Processes that crashed while decoding")
        self._evaluations = self._waited = self._killed = 0.0

    def shard(self, result: ShardResult, usage: Usage) -> None:
        """Count a shard that was searched."""
        if result.rows:
            self.rows.inc(len(result.rows))
        for failure in result.failures:
            self.quarantined.inc(1, {"reason": failure.reason})
        if result.evaluations:
            self.evaluations.inc(result.evaluations)
        if result.candidate_forwards:
            self.forwards.inc(result.candidate_forwards)
        self._evaluations += result.evaluations
        if usage.computed:
            self.occupancy.set(min(1.0, self._evaluations / usage.computed))
        self.slots.set(usage.slots)
        self._waited = self._rise(self.wait, self._waited, usage.waited, {"stage": "decode"})
        self._killed = self._rise(self.killed, self._killed, usage.killed)

    def published(self, seconds: float) -> None:
        """Count the seconds that writing a part file took."""
        if seconds > 0:
            self.wait.inc(seconds, {"stage": "publish"})

    @staticmethod
    def _rise(counter: Counter, before: float, now: float, tags: dict[str, str] | None = None) -> float:
        if now > before:
            counter.inc(now - before, tags)
        return now
