"""From what was measured to what is told: medians, ratios, a table, a chart. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, TypeAlias

from jobs.benchmarks import stages
from pipeline.reports import figures

Report: TypeAlias = dict[str, Any]

#: Ways to label, in the order in which they are measured, and what they are.
WAYS = {
    "ceiling": "the model only",
    "worker": "one worker",
    "run": "the whole run",
    "detectron2": "plain detectron2 loop",
    "ray_data": "Ray Data",
}


def summary(samples: Mapping[str, Sequence[Mapping[str, float]]], *, images: int, workers: int) -> Report:
    """The figures of a benchmark.

    Args:
        samples: of each repeat, `stages` (seconds of all images by stage), `images_per_s` (by way), `cpu_ms` (the time
            on CPUs an image, by way) and `run_s` (the parts of the run in seconds).
        images: that each measure saw.
        workers: of the run.

    Returns:
        `stages`: of each stage the milliseconds an image, and the share of all stages, which add up to 1;
        `images_per_s`: by way; `ratios`: of these, where "worker/ceiling" compares with a process of the ceiling;
        `cpu_ms`; `run_s`. All are medians over the repeats, ratios that of each repeat's own.
    """
    milliseconds = {name: 1000 * value / images for name, value in _medians(samples["stages"]).items()}
    total = sum(milliseconds.values())
    return {
        "stages": {name: {"ms_per_image": value, "share": value / total} for name, value in milliseconds.items()},
        "images_per_s": _medians(samples["images_per_s"]),
        "ratios": _medians([ratios(one, workers=workers) for one in samples["images_per_s"]]),
        "cpu_ms": _medians(samples["cpu_ms"]),
        "run_s": _medians(samples["run_s"]),
    }


def ratios(images_per_s: Mapping[str, float], *, workers: int) -> dict[str, float]:
    """How the ways to label compare.

    >>> ratios({"ceiling": 8.0, "worker": 3.0, "run": 6.0, "ray_data": 4.0}, workers=2)
    {'run/ceiling': 0.75, 'worker/ceiling': 0.75, 'run/ray_data': 1.5}
    """
    run, ceiling = images_per_s["run"], images_per_s["ceiling"]
    found = {"run/ceiling": run / ceiling, "worker/ceiling": images_per_s["worker"] * workers / ceiling}
    return found | {
        f"run/{peer}": run / images_per_s[peer] for peer in ("detectron2", "ray_data") if peer in images_per_s
    }


def _medians(samples: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: median(one[name] for one in samples) for name in samples[0]}


def table(report: Report) -> str:
    """The figures for a person."""
    lines = [f"{'stage':<20}{'ms an image':>14}{'share':>9}{'images/s':>12}"]
    for name, stage in report["stages"].items():
        rate = 1000 / stage["ms_per_image"]
        lines.append(f"{stages.NAMES[name]:<20}{stage['ms_per_image']:>14.3f}{stage['share']:>9.1%}{rate:>12.1f}")
    total = sum(stage["ms_per_image"] for stage in report["stages"].values())
    lines += [f"{'one after another':<20}{total:>14.3f}{1:>9.1%}{1000 / total:>12.1f}", ""]
    lines.append(f"{'':<24}{'images/s':>10}{'least':>10}{'most':>10}{'CPU ms an image':>18}")
    for name, rate in report["images_per_s"].items():
        every = [one[name] for one in report["repeats"]["images_per_s"]]
        cpu = f"{report['cpu_ms'][name]:>18.1f}" if name in report["cpu_ms"] else ""
        lines.append(f"{WAYS[name]:<24}{rate:>10.2f}{min(every):>10.2f}{max(every):>10.2f}{cpu}")
    lines += ["", *(f"{name:<24}{value:>10.3f}" for name, value in report["ratios"].items()), ""]
    parts = report["run_s"]
    lines.append(
        f"the run: {parts['starting']:.1f} s until its first worker begins, {parts['labeling']:.1f} s until its last "
        f"commit, which count; {parts['ending']:.1f} s to end"
    )
    return "\n".join([*lines, *_about(report)])


def _about(report: Report) -> list[str]:
    """What was measured, and on what."""
    settings = report["settings"]
    return [
        f"device: {report['device']['name']}, {report['device']['cpus']} CPUs; "
        + ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version),
        "settings: " + ", ".join(f"{key} {value}" for key, value in settings.items()),
        f"{report['date']}: {report['command']}",
    ]


def chart(report: Report) -> bytes:
    """The shares of the stages as a bar chart, PNG."""
    found = report["stages"]
    settings = report["settings"]
    return figures.bars(
        [f"{stages.NAMES[name]}, {stage['ms_per_image']:.2f} ms" for name, stage in found.items()],
        {"one stage after another": [stage["share"] for stage in found.values()]},
        title=f"{report['device']['name']}, {settings['precision']}, batches of {settings['batch_size']}, "
        f"torch {report['versions']['torch']}",
        x_label="share of the time of an image, %",
    )
