"""The whole way on drawn scenes, in a few minutes on a laptop: `make demo`, or `python -m jobs.demo`.

Draws scenes with exact masks into tar shards, labels them on a local Ray with the shipped checkpoint, verifies the run,
measures it against the truth, and lays out a gallery and a contact sheet. Everything is in `build/demo`, which is made
anew; with `--storage s3://bucket/prefix`, the shards, the truth, the run, the report and the gallery are there, where
no run may be yet.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from jobs import command
from patchdct import scenes
from pipeline import ledger, overlay, runs
from pipeline.store import Store, join

FOLDER = Path("build/demo")
IMAGES, PER_SHARD, SEED = 300, 50, 2
SHOWN, COLUMNS, SHOWN_SCORE = 24, 6, 0.5


def _do(module: str, *words: str) -> str:
    """Run a command as a user would type it, echoed -> its standard output; the demo ends where one fails."""
    print("\n$ python -m " + " ".join((module, *words)), flush=True)
    done = subprocess.run([sys.executable, "-m", module, *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(done.stdout, end="")
        raise SystemExit(done.returncode)
    return done.stdout


def _draw() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    scenes.write_scenes(FOLDER / "scenes", images=IMAGES, seed=SEED)
    shards = scenes.pack_tars(FOLDER / "scenes/images", FOLDER / "scenes/shards", PER_SHARD)
    print(f"drew {IMAGES} scenes into {len(shards)} tar shards at {FOLDER}/scenes/shards", flush=True)


def _upload(storage: str) -> None:
    """Put the shards and the truth where the labeling job is to find them."""
    store, drawn = Store(), FOLDER / "scenes"
    for path in [*sorted((drawn / "shards").iterdir()), drawn / "annotations.json"]:
        store.put(join(storage, "scenes", str(path.relative_to(drawn))), path)


def _sheet(path: Path, run: str) -> None:
    """Draw the labels of the first images over them."""
    store = Store()
    categories = ledger.read_manifest(store, run).categories
    rows = sorted(islice(runs.read_rows(store, run), PER_SHARD), key=lambda row: row.key)[:SHOWN]
    tiles = [
        overlay.draw_labels(
            np.asarray(Image.open(FOLDER / "scenes/images" / row.key)),
            row.instances.above(SHOWN_SCORE),
            categories,
            scale=2,
        )
        for row in rows
    ]
    overlay.write_png(path, overlay.contact_sheet(tiles, columns=COLUMNS, captions=[row.key for row in rows]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; the exit status is that of the step that failed, else 0."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo", description="The whole way on drawn scenes.")
    parser.add_argument("--storage", default=str(FOLDER), metavar="URI", help="where shards, run and report go")
    storage = parser.parse_args(argv).storage
    run, report_uri = join(storage, "run"), join(storage, "report")
    elsewhere = storage != str(FOLDER)

    def where(**keys: str) -> list[str]:
        """The settings that lead a job elsewhere than its config does."""
        return [word for key, uri in keys.items() if elsewhere for word in ("--set", f"{key.replace('_', '.')}={uri}")]

    start = time.monotonic()
    _draw()
    if elsewhere:
        _upload(storage)
    inputs = where(input_uri=join(storage, "scenes/shards"), output_uri=run)
    print(_do("jobs.label", "--config", "configs/label/demo.yaml", *inputs), end="")
    print(_do("pipeline.cli", "verify", run), end="")
    measured = where(predictions=run, truth_annotations=join(storage, "scenes/annotations.json"), output=report_uri)
    report = json.loads(_do("jobs.evaluate", "--config", "configs/evaluate/demo.yaml", *measured))
    gallery = join(storage, "gallery")
    truth = join(storage, "scenes/annotations.json")
    print(_do("pipeline.cli", "gallery", run, "--out", gallery, "--truth", truth), end="")
    _sheet(FOLDER / "contact_sheet.png", run)
    seconds, mask, edge = time.monotonic() - start, report["mask"], report["boundary"]
    print()
    print(f"Labelled {IMAGES} drawn scenes with a PatchDCT model of 5.5 M parameters in {seconds:.0f} s, all told.")
    print(f"Exact truth: mask AP {mask['AP']:.3f} (AP50 {mask['AP50']:.3f}), boundary AP {edge['AP']:.3f}.")
    print(f"Look at {gallery}/index.html: all images, the worst masks first; opens by double click.")
    print(f"And at {FOLDER}/contact_sheet.png: the masks of {SHOWN} images, score {SHOWN_SCORE} and up.")
    print(f"The run: {run}, Parquet in labels/, COCO in coco/; `.venv/bin/patchlabel status {run}`.")
    print(f"What it took: {run}/report/report.html. Against the truth: {report_uri}/report.html.")
    return command.DONE


if __name__ == "__main__":
    sys.exit(main())
