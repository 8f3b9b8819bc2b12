"""A run as Prometheus sees it: through Ray, whose nodes export what their processes have counted.

A driver that is connected by ray:// is no process of the cluster, and its figures do not get there.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from pipeline.driver.outcomes import Snapshot

#: What is exported, under `ray_` and the name, counters with `_total` behind: the help text, and the further tag.
GAUGES = {
    "patchlabel_shards": "Shards of the run",
    "patchlabel_shards_done": "Shards that are committed",
    "patchlabel_shards_set_aside": "Shards that this driver has set aside",
    "patchlabel_workers": "Workers that can label",
}
COUNTERS = {
    "patchlabel_images": ("Images of the shards that this driver has seen done", "status"),
    "patchlabel_masks": ("Masks of these", ""),
    "patchlabel_step_seconds": ("Seconds of the workers by step, which overlap", "step"),
    "patchlabel_worker_seconds": ("Seconds of all workers that could label", ""),
    "patchlabel_failed_attempts": ("Attempts that cost a worker, or failed", ""),
    "patchlabel_shards_given_back": ("Shards whose worker was lost for another reason", ""),
    "patchlabel_shards_copied": ("Slow shards that were given to a second worker", ""),
}


EVERY_S = 1.0


class Metrics:
    """Keeps the figures of a run up to date."""

    def __init__(self, run_id: str) -> None:
        """Ray must be connected. The figures have the tag `run`."""
        self._tags = {"run": run_id}
        self._gauges = {name: Gauge(name, text, ("run",)) for name, text in GAUGES.items()}
        self._counters = {
            name: Counter(name, text, ("run", tag) if tag else ("run",)) for name, (text, tag) in COUNTERS.items()
        }
        self._before: dict[tuple[str, str], float] = {}
        self._exported = -EVERY_S

    def consider(self, now: Snapshot, *, last: bool = False) -> None:
        """Export where the run stands, once a second; or at once where it is the `last` word."""
        if not last and now.seconds - self._exported < EVERY_S:
            return
        self._exported = now.seconds
        gauges = (now.shards, now.done, now.failed, now.workers)
        for gauge, value in zip(self._gauges.values(), gauges, strict=True):
            gauge.set(value, self._tags)
        images = {"labelled": now.labelled, "empty": now.empty, "quarantined": now.quarantined}
        counted: dict[str, Mapping[str, float]] = {
            "patchlabel_images": images,
            "patchlabel_masks": {"": now.instances},
            "patchlabel_step_seconds": now.stages,
            "patchlabel_worker_seconds": {"": now.worker_seconds},
            "patchlabel_failed_attempts": {"": now.strikes},
            "patchlabel_shards_given_back": {"": now.given_back},
            "patchlabel_shards_copied": {"": now.copies},
        }
        for name, totals in counted.items():
            for tag, total in totals.items():
                self._count(name, tag, total)

    def _count(self, name: str, value: str, total: float) -> None:
        """Bring a counter, where it has the tag `value`, up to a total."""
        more = total - self._before.get((name, value), 0.0)
        if more > 0:
            _, tag = COUNTERS[name]
            self._counters[name].inc(more, {**self._tags, **({tag: value} if tag else {})})
            self._before[name, value] = total
