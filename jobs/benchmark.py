"""Measure labeling on this machine: `python -m jobs.benchmark --config FILE [--set key=value]... [--json FILE]`.

FILE is a label config. Measured, by turns, are each stage alone, the model only (the ceiling: as many processes as the
run has workers, on images that are ready), one worker, and the whole run on a local Ray, from the moment at which its
first worker begins until the last commit; with `--peers`, the same work as others do it. The images are the first of
the input, over and over where it has few. All is written to a fresh folder below `output.uri`, and removed. The figures
go to standard output as a table, with `--json` to that file as well, and beside it a chart of the stages.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from jobs import command
from jobs.benchmarks import peers, report, stages, whole
from jobs.benchmarks.ceiling import ceiling
from jobs.benchmarks.work import Work, choose, first_images, fresh_folder
from patchdct import stage_times
from pipeline import __version__, dates, founding
from pipeline.config import LabelConfig, LabelerConfig, WorkersRange, load
from pipeline.errors import UserError
from pipeline.labelers import Labeler, batch_size, build, staged
from pipeline.store import Store, redact
from pipeline.worker import Worker

REPEATS, SECONDS = 3, 6
#: From this share of the CPUs on, others are at work.
BUSY = 0.5

log = logging.getLogger("jobs.benchmark")


def run(config: LabelConfig, *, repeats: int, seconds: float, others: tuple[str, ...] = ()) -> report.Report:
    """Measure, and remove what was written for it.

    Args:
        config: of the labeling job.
        repeats: how often each measure is taken; they take turns, and medians count.
        seconds: about how long one takes, by which the number of images is chosen.
        others: of `peers.NAMES`, which peers are measured, too.

    Returns:
        See `report.summary`; besides, `device`, `versions`, `settings`, `date`, and `repeats`, what each of them gave.

    Raises:
        UserError: what is refused.
        LabelingError: what ends a run.
    """
    peers.check(others, config)
    store, gpus = Store(), stage_times.gpus()
    workers = _workers(config, gpus)
    config = founding.located(config)
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, workers=workers, address="local"))
    load, cpus = os.getloadavg()[0], os.cpu_count() or 1
    if load > BUSY * cpus:
        log.warning("this machine is busy (load %.1f on %d CPUs): rates will be low, and ratios off", load, cpus)
    with fresh_folder(config.output.uri, store) as folder:
        founding.check_writable("output.uri", folder, store)
        worker, labeler = Worker(config), build(config.labeler, store)
        size = batch_size(staged(labeler), config.labeler)
        pace = _seconds_an_image(config, folder, labeler, size, store)
        images = max(workers * size, math.ceil(workers * seconds / pace))
        work = choose(config, folder=folder, workers=workers, images=images, store=store)
        log.info("%d images in %d shards, %d times each", work.images, len(work.shards), repeats)
        plain = peers.plain_loop(config, store) if "detectron2" in others else None
        samples: dict[str, list[dict[str, float]]] = {"stages": [], "images_per_s": [], "cpu_ms": [], "run_s": []}
        with ceiling(work, size=size, gpus=gpus, store=store) as top:
            for number in range(1, repeats + 1):
                samples["stages"].append(stages.measure(work, labeler, size=size, store=store))
                took = {"ceiling": top.measure(work.images)}
                took["worker"], masks = whole.one_worker(work, worker, store)
                took["run"], parts = whole.whole_run(work, worker, store)
                if plain is not None:
                    took["detectron2"] = peers.detectron2(work, plain, store)
                if "ray_data" in others:
                    took["ray_data"] = peers.ray_data(work, size=size, gpus=gpus, store=store)
                samples["run_s"].append(parts)
                samples["images_per_s"].append({way: one.rate for way, one in took.items()})
                samples["cpu_ms"].append(
                    {way: 1000 * one.cpu_seconds / one.images for way, one in took.items() if one.cpu_seconds}
                )
                shown = ", ".join(f"{report.WAYS[way]} {one.rate:.2f}" for way, one in took.items())
                log.info("repeat %d of %d, images/s: %s", number, repeats, shown)
    return {
        **report.summary(samples, images=work.images, workers=workers),
        "device": {**_machine(), "gpus": gpus, "load_before": load},
        "versions": {"patchlabel": __version__, "python": platform.python_version(), "ray": ray.__version__}
        | stage_times.versions(),
        "settings": _settings(work, size, repeats) | {"masks_per_image": round(masks / work.images, 2)},
        "date": dates.now(),
        "repeats": samples,
    }


def _workers(config: LabelConfig, gpus: int) -> int:
    """How many workers a run on this machine has; of a range, the least.

    Raises:
        UserError: the machine has no room for them.
    """
    workers = config.run.workers.min if isinstance(config.run.workers, WorkersRange) else config.run.workers
    here = dataclasses.replace(config.run, address="local")
    room = {"GPU": float(gpus), "CPU": float(os.cpu_count() or 1)}
    each, _ = founding.worker_needs(here, room, in_ray_job=False, together=workers or 1)
    return workers or (max(1, int(gpus / each)) if each else 1)


def _seconds_an_image(config: LabelConfig, folder: str, labeler: Labeler, size: int, store: Store) -> float:
    """How long the labeler takes for an image, once it is warm.

    Raises:
        UserError: the input has no image that can be decoded.
    """
    found = first_images(config, folder=folder, count=2 * size, store=store)
    if not found:
        raise UserError("input.uri: none of the first images can be decoded")
    labeler.label(found[:size])
    start = time.perf_counter()
    labeler.label(found[-size:])
    return (time.perf_counter() - start) / len(found[-size:])


def _machine() -> dict[str, Any]:
    """What the machine is called."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return {"name": stage_times.device(), "cpu": names[0] if names else platform.machine(), "cpus": os.cpu_count()}


def _settings(work: Work, size: int, repeats: int) -> dict[str, Any]:
    """What the figures depend on: of the labeler, what is not as usual."""
    usual = LabelerConfig()
    given = {
        key: redact(value) if isinstance(value, str) else value
        for key, value in dataclasses.asdict(work.config.labeler).items()
        if key == "precision" or value != getattr(usual, key)
    }
    return {
        **given,
        "batch_size": size,
        "workers": work.workers,
        "cpus_per_worker": work.config.run.cpus_per_worker or 1,
        "output_formats": list(work.config.output.formats),
        "images": work.images,
        "shards": len(work.shards),
        "loops": work.loops,
        "packed": work.packed,
        "repeats": repeats,
    }


def _writable(file: str | None) -> Path | None:
    """Where the JSON goes.

    Raises:
        UserError: nothing can be written there.
    """
    if file is None:
        return None
    place = Path(file)
    if place.is_dir() or not place.parent.is_dir() or not os.access(place.parent, os.W_OK):
        raise UserError(f"--json is {file}; give a file in a folder that is there and can be written")
    return place


def _parser() -> argparse.ArgumentParser:
    parser = command.parser_of("jobs.benchmark", "Measure labeling on this machine, by a label config.")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, and a chart beside it")
    parser.add_argument("--repeats", type=_positive, default=REPEATS, metavar="N", help="of each measure")
    parser.add_argument("--seconds", type=_positive, default=SECONDS, metavar="S", help="about how long one takes")
    parser.add_argument("--peers", default="", metavar="LIST", help=f"measure these, too: {','.join(peers.NAMES)}")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"it is {number}; it must be 1 or more")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0 when measured, 1 when something failed, 2 when the input was refused."""
    given = sys.argv[1:] if argv is None else argv
    options = _parser().parse_args(given)

    def work() -> int:
        others = tuple(one for one in options.peers.split(",") if one)
        place = _writable(options.json)
        found = run(
            load(LabelConfig, options.config, options.set),
            repeats=options.repeats,
            seconds=options.seconds,
            others=others,
        )
        found["command"] = shlex.join(["python", "-m", "jobs.benchmark", *map(redact, given)])
        print(report.table(found))
        if place is not None:
            place.write_text(json.dumps(found, indent=2) + "\n")
            place.with_suffix(".png").write_bytes(report.chart(found))
            print(f"\nwrote {place} and {place.with_suffix('.png')}")
        return command.DONE

    return command.guarded(work)


if __name__ == "__main__":
    sys.exit(main())
