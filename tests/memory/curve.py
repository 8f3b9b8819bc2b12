"""A worker's memory over a long run: whether it stays as it is, as a picture and in figures.

    python -m tests.memory.curve --out DIR [--images 10000] [--seed 7] [--labeler masks | leaking | patchdct] [--s3]

A real worker in a process of its own labels shard after shard: tars, Parquet files and listings in turn, of images of
many sizes and formats, each tenth a JPEG of 12 megapixels with 300 masks. The masks are drawn, pasted by the product's
own code and written as Parquet and COCO; `patchdct` is the demo's model, over its own scenes and a 12-megapixel image
in 25. Inputs and outputs are removed as the run goes on. DIR gets curve.png, report.json and course.json (all that was
read). The exit status is 1 where memory grows, from when a fifth of the images are done: by the slopes of `BOUNDS`, or
where the resident size does so by more than `MOST_GROWTH`. What malloc keeps of freed memory moves by some tens of MB
whatever is labelled, so a slow leak is told by what is allocated; in a run of less than some thousand images, that
grows as well, as the caches of Python fill.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TypeAlias

import matplotlib
import numpy as np
import yaml
from PIL import Image

from patchdct import scenes
from pipeline.store import Store, join
from tests import seaweed
from tests.memory.gauge import Reading
from tests.memory.inputs import FORMATS, Inputs, encoded, large_pictures, mixed_pictures
from tests.memory.shift import REPOSITORY, Done, Shift

matplotlib.use("agg")
from matplotlib import pyplot as plt

Labeling: TypeAlias = dict[str, object]

PER_SHARD, WARM_UP, MEBI = 100, 0.2, 1 << 20
#: The most that each figure may grow by, for an image; a leak of 2,000 bytes an image, or of 100 kB a shard, is more.
BOUNDS = {"allocated": 500.0, "blocks": 5.0, "files": 0.002, "threads": 0.002}
#: The most that the resident size may grow by, of its mean.
MOST_GROWTH = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is labelled by what: of so many images, one is large."""

    labeler: Labeling
    one_large_in: int
    others: dict[str, bytes]


def scenario(name: str, seed: int, max_instances: int = 300) -> Scenario:
    """The labeler of this name, with its images."""
    if name == "patchdct":
        weights = str(REPOSITORY / "configs/model/patchdct_demo.pth")
        labeler: Labeling = {"weights": weights, "max_instances": max_instances, "score_threshold": 0.0}
        return Scenario(labeler=labeler, one_large_in=25, others=scene_pictures(24, seed))
    labeler = {"name": f"tests.memory.labelers:{name.title()}Labeler", "max_instances": max_instances}
    return Scenario(labeler=labeler, one_large_in=10, others=mixed_pictures(np.random.default_rng(seed)))


def scene_pictures(number: int, seed: int) -> dict[str, bytes]:
    """Drawn scenes, the data of the demo's model."""
    drawn = (Image.fromarray(scenes.draw_scene(seed + i).image) for i in range(number))
    return {f"{i}.jpg": encoded(image) for i, image in enumerate(drawn)}


@contextmanager
def place(s3: bool) -> Iterator[str]:
    """An empty folder, or a bucket of a server that is started for it; gone afterwards."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        if not s3:
            yield folder
            return
        server = stack.enter_context(seaweed.SeaweedFS(Path(folder)))
        os.environ |= seaweed.settings(server.endpoint)
        seaweed.client(server.endpoint).create_bucket(Bucket="memory")
        yield "s3://memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What became of a run: the start, the shards, the times at their ends; resident sizes, (s, bytes), in between."""

    start: Reading
    done: list[Done]
    times: list[float]
    seen: list[tuple[float, int]]

    @property
    def images(self) -> list[int]:
        """How many images were done at the end of each shard."""
        return list(accumulate(one.images for one in self.done))


def work(what: Scenario, images: int, seed: int, root: str) -> Course:
    """Have a worker label so many images at `root`."""
    store, rng = Store(), np.random.default_rng(seed)
    large = large_pictures(rng)
    inputs = Inputs(root, store, what.others | large)
    done, times = [], [time.monotonic()]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "label.yaml"
        config.write_text(yaml.safe_dump({"input": {"uri": root}, "output": {"uri": root}, "labeler": what.labeler}))
        with Shift(config) as shift:
            for number in range(-(-images // PER_SHARD)):
                names = [
                    str(rng.choice(list(large if rng.integers(what.one_large_in) == 0 else what.others)))
                    for _ in range(min(PER_SHARD, images - number * PER_SHARD))
                ]
                shard = inputs.make(number, FORMATS[number % len(FORMATS)], names)
                done.append(shift.label(shard))
                times.append(time.monotonic())
                inputs.remove(shard)
                for path in done[-1].outputs:
                    store.delete(join(root, path))
    return Course(start=shift.start, done=done, times=times, seen=shift.seen)


def report(course: Course) -> dict[str, object]:
    """The figures of a run, and the verdict: slopes by least squares over what comes after the warm-up."""
    x = np.array(course.images, float)
    late = x > WARM_UP * x[-1]
    readings = [one.reading for one, is_late in zip(course.done, late, strict=True) if is_late]
    columns = {name: np.array([getattr(one, name) for one in readings], float) for name in ("rss", *BOUNDS)}
    slopes = {name: float(np.polyfit(x[late], values, 1)[0]) for name, values in columns.items()}
    growth = slopes["rss"] * (x[-1] - x[late][0]) / columns["rss"].mean()
    grows = [name for name, bound in BOUNDS.items() if slopes[name] > bound]
    return {
        "images": course.images[-1],
        "quarantined": sum(one.quarantined for one in course.done),
        "instances": sum(one.instances for one in course.done),
        "shards": len(course.done),
        "cpu_s": round(sum(one.cpu_s for one in course.done), 1),
        "start": dataclasses.asdict(course.start),
        "after_warm_up": dataclasses.asdict(readings[0]),
        "end": dataclasses.asdict(readings[-1]),
        "peak_rss": max(one.reading.peak for one in course.done),
        "rss_growth": round(float(growth), 4),
        "slope_per_image": {name: round(slope, 4) for name, slope in slopes.items()},
        "bounds": {"rss_growth": MOST_GROWTH, **BOUNDS},
        "grows": [*(["rss"] if growth > MOST_GROWTH else []), *grows],
    }


def draw(path: Path, course: Course, title: str) -> None:
    """Resident size over images: in between, after each shard, and what is allocated."""
    x = np.array(course.images)
    seen = np.array([one for one in course.seen if course.times[0] <= one[0] <= course.times[-1]])
    figure, axes = plt.subplots(figsize=(11, 5), layout="constrained")
    axes.plot(np.interp(seen[:, 0], course.times, [0, *x]), seen[:, 1] / MEBI, lw=0.4, c="0.7", label="resident")
    for key, colour, words in (
        ("peak", "tab:red", "resident, peak of a shard"),
        ("rss", "tab:blue", "resident, after a shard"),
        ("allocated", "tab:green", "allocated, after a shard"),
    ):
        axes.plot(x, [getattr(one.reading, key) / MEBI for one in course.done], ".-", lw=0.8, c=colour, label=words)
    axes.axvline(WARM_UP * x[-1], c="0.5", ls=":", lw=1)
    axes.set(xlabel="images", ylabel="MiB", title=title, ylim=(0, None), xlim=(0, x[-1]))
    axes.legend(loc="upper left", ncols=4, frameon=False)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.1)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--labeler", choices=("masks", "leaking", "patchdct"), default="masks")
    parser.add_argument("--s3", action="store_true", help="from and to a SeaweedFS that is started for it")
    asked = parser.parse_args(argv)
    asked.out.mkdir(parents=True, exist_ok=True)
    with place(asked.s3) as root:
        course = work(scenario(asked.labeler, asked.seed), asked.images, asked.seed, root)
    found = report(course)
    (asked.out / "report.json").write_text(json.dumps(found | {"seed": asked.seed, "labeler": asked.labeler}, indent=1))
    (asked.out / "course.json").write_text(json.dumps(dataclasses.asdict(course)))
    where = "object storage" if asked.s3 else "a disk"
    draw(asked.out / "curve.png", course, f"A worker over {found['images']} images on {where}, labeler {asked.labeler}")
    print(json.dumps(found))
    return 1 if found["grows"] else 0


if __name__ == "__main__":
    sys.exit(main())
