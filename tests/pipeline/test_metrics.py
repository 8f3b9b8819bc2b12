"""What Prometheus gets to see of a run, and whether the dashboard asks for what is there."""

from __future__ import annotations

import json
import re
import socket
import time
import urllib.request
from pathlib import Path

import ray

from pipeline.driver.metrics import COUNTERS, GAUGES, Metrics
from pipeline.driver.outcomes import Snapshot

DASHBOARD = Path(__file__).resolve().parents[2] / "configs/cluster/grafana.json"
NAME = re.compile(r"\bray_patchlabel_\w+")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def exported(port: int, wanted: set[str]) -> str:
    """What a node exports, as soon as it has all that is wanted."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                text: str = answer.read().decode()
        except OSError:
            text = ""
        if wanted <= set(NAME.findall(text)) or time.monotonic() > deadline:
            return text
        time.sleep(0.2)


def names() -> set[str]:
    return {f"ray_{name}" for name in GAUGES} | {f"ray_{name}_total" for name in COUNTERS}


def test_ray_exports_the_figures_and_the_dashboard_knows_them() -> None:
    """A panel that asks for a name which nobody exports stays empty, and nobody notices until it is needed."""
    port = free_port()
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        _metrics_export_port=port,
        _system_config={"metrics_report_interval_ms": 500},
    )
    try:
        metrics = Metrics("0123456789ab")
        first = Snapshot(shards=9, done=2, workers=3, images=8, labelled=5, empty=2, quarantined=1, instances=40)
        seen = {"shards": 9, "done": 4, "workers": 2, "images": 17, "labelled": 12, "empty": 4, "quarantined": 1}
        more = {"instances": 90, "failed": 1, "worker_seconds": 7.5, "strikes": 1, "given_back": 1, "copies": 1}
        metrics.consider(first)
        metrics.consider(Snapshot(**seen, **more, stages={"model": 6.0}), last=True)
        text = exported(port, names())
    finally:
        ray.shutdown()
    values = {
        (match[1], match[2]): float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if (match := re.match(r'(ray_patchlabel_\w+)\{.*run="0123456789ab"(?:,s(?:tatus|tep)="(\w+)")?', line))
    }
    assert values["ray_patchlabel_shards_done", None] == 4
    assert values["ray_patchlabel_workers", None] == 2
    assert values["ray_patchlabel_images_total", "labelled"] == 12
    assert values["ray_patchlabel_images_total", "quarantined"] == 1
    assert values["ray_patchlabel_masks_total", None] == 90
    assert values["ray_patchlabel_step_seconds_total", "model"] == 6.0
    assert {name for name, _ in values} == names()


def test_the_dashboard_asks_for_nothing_else() -> None:
    """The names of the code and of the dashboard are kept together by this alone."""
    dashboard = json.loads(DASHBOARD.read_text())
    asked = {name for panel in dashboard["panels"] for one in panel["targets"] for name in NAME.findall(one["expr"])}
    assert asked == names()
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(places)
