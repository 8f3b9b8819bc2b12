"""Whether an evaluation streams: `python -m tests.jobs.bench_evaluate --images 2000 20000 --folder DIR`.

For each number of images it makes a run on a local disk, of shards that hold a thousand images with a few masks each,
and a COCO truth of as many, and measures the one against the other in a process of its own: seconds of CPU, the largest
resident size while the truth is read, what the truth takes once it is read, and the largest that the evaluation adds to
that, free places among what the truth holds aside. It fails where the evaluation adds more for an image than is
allowed. The files are removed.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import gc
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jobs import evaluate, predictions
from pipeline.config import EvaluateConfig, TruthConfig
from pipeline.store import Store
from tests.pipeline.bench_export import CATEGORIES, IMAGES, SIZE, simulate, simulated_instances

#: How much the evaluation may add for an image, in bytes.
ALLOWED = 1 << 11


def write_truth(path: Path, images: int) -> None:
    """Objects that are what the run found, but for the last prediction of each image."""
    found = simulated_instances()
    height, width = SIZE
    size = {"height": height, "width": width}
    places = list(enumerate(zip(found.counts, found.areas.tolist(), found.boxes.tolist(), strict=True)))[:-1]
    with path.open("w") as file:
        rows = (
            {"id": number, "file_name": f"{number // IMAGES:06d}/{number % IMAGES:08d}.jpg", **size}
            for number in range(images)
        )
        file.write('{"categories": ' + json.dumps([dataclasses.asdict(one) for one in CATEGORIES]) + ', "images": [')
        file.writelines((", " if row["id"] else "") + json.dumps(row) for row in rows)
        file.write('], "annotations": [')
        for number in range(images):
            for place, (counts, area, box) in places:
                row = {"id": number * len(places) + place + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
                row |= {"segmentation": {"size": [height, width], "counts": counts}, "area": area, "bbox": box}
                file.write((", " if row["id"] > 1 else "") + json.dumps(row))
        file.write("]}")


def resident(what: str) -> int:
    """Bytes: VmRSS, what is resident now, or VmHWM, the most since it was last reset."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) << 10


def settle() -> int:
    """Hand free memory back to the system -> what is left, from which the most is counted anew."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def take(folder: Path) -> dict[str, float]:
    """Measure the run in this process, after a small one for which modules are loaded and code is compiled."""
    evaluate_run(folder / "small")
    return evaluate_run(folder)


def evaluate_run(folder: Path) -> dict[str, float]:
    store = Store()
    config = EvaluateConfig(
        predictions=str(folder),
        truth=TruthConfig(annotations=str(folder / "truth.json")),
        metrics=("coco", "boundary", "pr"),
        output=str(folder / "report"),
    )
    bare = settle()
    truth = evaluate.read_truth(config, "labeling run", store)
    reading, held, start = resident("VmHWM") - bare, settle(), time.process_time()
    found = predictions.from_run(str(folder), truth.coco, store)
    report, _ = evaluate.measure(config, truth, found, store)
    return {
        "reading": reading,
        "truth": held - bare,
        "evaluation": resident("VmHWM") - held,
        "cpu_seconds": time.process_time() - start,
        "results": report["results"],
        "AP": report["mask"]["AP"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs=2, default=[2_000, 20_000])
    parser.add_argument("--folder", type=Path, help="where to make the runs; a new folder in it, removed at the end")
    parser.add_argument("--take", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.take:
        print(json.dumps(take(options.take)))
        return 0
    rows: list[dict[str, float]] = []
    for images in options.images:
        folder = Path(tempfile.mkdtemp(prefix="bench-evaluate-", dir=options.folder))
        try:
            for place, count in ((folder, images), (folder / "small", IMAGES)):
                place.mkdir(exist_ok=True)
                simulate(place, count)
                write_truth(place / "truth.json", count)
            command = [sys.executable, "-m", __spec__.name, "--take", str(folder)]
            line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        finally:
            shutil.rmtree(folder)
        row = json.loads(line)
        rows.append(row)
        print(
            f"{images:8d} images, {row['results']} predictions, mask AP {row['AP']:.3f}: "
            f"{row['reading'] / 1e6:.0f} MB to read the truth, {row['truth'] / 1e6:.0f} MB to hold it, "
            f"{row['evaluation'] / 1e6:.0f} MB and {row['cpu_seconds']:.1f} s CPU to evaluate",
            flush=True,
        )
    first, last = options.images
    each = {key: (rows[1][key] - rows[0][key]) / (last - first) for key in ("reading", "truth", "evaluation")}
    print(
        f"an image more: {each['reading'] / 1e3:.2f} KB to read the truth, {each['truth'] / 1e3:.2f} KB to hold it, "
        f"{each['evaluation'] / 1e3:.2f} KB to evaluate"
    )
    return int(each["evaluation"] > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
