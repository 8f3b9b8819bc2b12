"""Whether an export streams: `python -m tests.pipeline.bench_export --images 20000 200000 --folder DIR`.

For each number of images it makes a run on a local disk, of shards that hold a thousand images with a few masks each,
and exports it, each format in a process of its own: seconds, seconds of CPU, and the largest resident size, beside that
of a process which only opens the run. It fails where memory grows with the images. The files are removed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_api

from pipeline import exports, ledger, masks, sinks
from pipeline.records import SCHEMA_VERSION, Category, Commit, ImageLabels, Instances, Manifest, Output, Shard
from pipeline.shard_list import ShardList
from pipeline.store import Store

IMAGES, MASKS = 1000, 4  # of a shard, of an image
SIZE = (480, 640)
CATEGORIES = (Category(id=1, name="thing"),)
#: How much more memory the largest run may take than the smallest, in bytes.
SLACK = 30 << 20


def simulated_instances() -> Instances:
    """Ellipses."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    centres, radii = random.uniform(150, 330, (MASKS, 2)), random.uniform(40, 120, (MASKS, 2))
    bitmaps = [
        ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1 for (cy, cx), (ry, rx) in zip(centres, radii, strict=True)
    ]
    counts = [mask_api.encode(np.asfortranarray(one, np.uint8))["counts"].decode() for one in bitmaps]
    measures = masks.measure(counts, SIZE)
    return Instances(
        category_ids=np.ones(MASKS, np.int32),
        scores=np.linspace(0.9, 0.3, MASKS, dtype=np.float32),
        boxes=measures.boxes.astype(np.float32),
        areas=measures.areas,
        counts=tuple(counts),
    )


def simulate(folder: Path, images: int) -> None:
    """Write a run that is done."""
    store, uri, found = Store(), str(folder), simulated_instances()
    shards = ShardList.of(
        Shard(
            id=hashlib.sha256(str(number).encode()).hexdigest()[:20],
            uri=f"s3://bucket/{number:06d}.tar",
            format="tar",
            bytes=1 << 28,
            etag=str(number),
            number=number,
        )
        for number in range(images // IMAGES)
    )
    manifest = Manifest(
        run_id="0123456789ab",
        schema_version=SCHEMA_VERSION,
        version="0.1.0",
        created="2026-01-01T00:00:00+00:00",
        config={},
        fingerprint="f" * 16,
        categories=CATEGORIES,
        shards=shards,
    )
    ledger.write_manifest(store, uri, manifest)
    (folder / "labels").mkdir()
    for shard in shards:
        output = write_shard(folder, shard, found)
        commit = Commit(
            shard_id=shard.id,
            attempt="0" * 12,
            outputs={"parquet": output},
            images=IMAGES,
            labelled=IMAGES,
            empty=0,
            quarantined=0,
            instances=IMAGES * MASKS,
            reasons={},
            fingerprint=manifest.fingerprint,
            seconds=1.0,
            version="0.1.0",
        )
        ledger.commit(store, uri, commit)


def write_shard(folder: Path, shard: Shard, found: Instances) -> Output:
    header = sinks.Header(
        run_id="0123456789ab", shard_id=shard.id, fingerprint="f" * 16, version="0.1.0", categories=CATEGORIES
    )
    place = f"labels/{shard.id}-{'0' * 12}.parquet"
    with sinks.parquet(folder / place, header) as write:
        write(
            [
                ImageLabels(
                    key=f"{shard.number:06d}/{row:08d}.jpg",
                    image_id=shard.number << 22 | row,
                    uri=shard.uri,
                    height=SIZE[0],
                    width=SIZE[1],
                    instances=found,
                    status="labelled",
                )
                for row in range(IMAGES)
            ]
        )
    data = (folder / place).read_bytes()
    return Output(path=place, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def take(step: str, folder: Path) -> dict[str, object]:
    """Take a step in this process, and measure it."""
    start = time.perf_counter()
    if step == "open":
        told = f"{len(ledger.read_manifest(Store(), str(folder)).shards)} shards"
    else:
        written = exports.export(Store(), str(folder), format=step, out=str(folder / f"export-{step}"))
        told = f"{written.images} images, {written.instances} masks, {written.bytes / 1e6:.0f} MB"
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak": usage.ru_maxrss << 10,
        "told": told,
    }


def measure(step: str, folder: Path) -> dict[str, object]:
    """Take a step in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, "--step", step, "--folder", str(folder)]
    return dict(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--folder", type=Path, help="where to make the runs; a new folder in it, removed at the end")
    parser.add_argument("--formats", nargs="+", default=["coco", "parquet"], choices=list(exports.EXPORTS))
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(take(options.step, options.folder)))
        return 0
    peaks: dict[str, list[int]] = {}
    for images in options.images:
        folder = Path(tempfile.mkdtemp(prefix="bench-export-", dir=options.folder))
        try:
            simulate(folder, images)
            for step in ("open", *options.formats):
                row = measure(step, folder)
                peaks.setdefault(step, []).append(int(str(row["peak"])))
                mb = peaks[step][-1] / 1e6
                print(
                    f"{images:9d} images, {step:11} {row['cpu_seconds']} s CPU, peak {mb:.0f} MB: {row['told']}",
                    flush=True,
                )
        finally:
            shutil.rmtree(folder)
    return int(any(peaks[step][-1] > peaks[step][0] + SLACK for step in options.formats))


if __name__ == "__main__":
    sys.exit(main())
