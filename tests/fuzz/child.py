"""The process in which fuzzed input is labelled: folders in (a line each), what became of them out (a JSON line each).

A line is `FOLDER EXPECTED`: what to label (a COCO json, if there is one in it, else all), and how many images it must
account for, or -1 where no one knows.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from pipeline import founding, images, ledger, runs
from pipeline.config import InputConfig, LabelConfig, LabelerConfig, LimitsConfig, OutputConfig
from pipeline.errors import ShardError, UserError
from pipeline.labelers import build
from pipeline.records import NO_INSTANCES, REASONS, Instances, Pixels
from pipeline.store import Store
from pipeline.verify import verify
from pipeline.worker import Run, label_shard
from tests.fakes import BRIGHT, ThresholdLabeler

LIMITS = LimitsConfig(max_image_bytes=2_000_000, max_image_pixels=4_000_000)
MEMORY = 8 << 30


class OneMaskLabeler(ThresholdLabeler):
    """All that is bright is one instance: quick, however noisy an image is."""

    def _label(self, image: Pixels) -> Instances:
        bright = image[..., 1] >= BRIGHT
        if not bright.any():
            return NO_INSTANCES
        rle = mask_api.encode(np.asfortranarray(bright, np.uint8))
        return Instances(
            category_ids=np.ones(1, np.int32),
            scores=np.full(1, 0.75, np.float32),
            boxes=np.array([mask_api.toBbox(rle)], np.float32),
            areas=np.array([mask_api.area(rle)], np.int64),
            counts=(rle["counts"].decode(),),
            quality={"contrast": np.ones(1, np.float32)},
        )


def label(folder: Path, expected: int) -> dict[str, Any]:
    """Plan, label and verify what is in a folder; `fault` says what broke a promise."""
    out = folder.with_name(f"{folder.name}-run")
    config = LabelConfig(
        input=InputConfig(uri=next(map(str, folder.glob("*.json")), str(folder)), images_per_shard=1000),
        output=OutputConfig(uri=str(out)),
        labeler=LabelerConfig(name="tests.fuzz.child:OneMaskLabeler", batch_size=4),
        limits=LIMITS,
    )
    store = Store()
    result: dict[str, Any] = {"reasons": {}, "shards": {}, "fault": None}
    try:
        manifest, _ = founding.open_run(config, store)
    except UserError as error:
        return {**result, "shards": {"refused": 1}, "said": str(error)}
    labeler = build(config.labeler, store)
    manifest = replace(manifest, fingerprint=labeler.fingerprint, categories=labeler.categories)
    ledger.write_manifest(store, str(out), manifest)
    run = Run(id=manifest.run_id, uri=str(out), config=config)
    shards: Counter[str] = Counter()
    for shard in manifest.shards:
        try:
            label_shard(shard, run=run, store=store, labeler=labeler)
            shards["committed"] += 1
        except ShardError as error:
            shards["ShardError"] += 1
            result["said"] = str(error)
    rows = list(runs.read_rows(store, str(out)))
    reasons = Counter(row.status if row.error is None else row.error.partition(":")[0] for row in rows)
    faults = [str(fault) for fault in verify(store, str(out)).faults if "are not done" not in str(fault)]
    faults += [f"unknown reason {one!r}" for one in reasons if one not in (*REASONS, "labelled", "empty")]
    if expected >= 0 and len(rows) != expected:
        faults.append(f"{len(rows)} rows for {expected} images")
    shutil.rmtree(out)
    return {**result, "reasons": reasons, "shards": shards, "fault": "; ".join(faults[:3]) or None}


class _Watch:
    """Measures each call of `images.decode`, which it stands for."""

    def __init__(self) -> None:
        self.decode, self.slowest = images.decode, (0.0, "")

    def __call__(self, data: bytes, *, max_bytes: int, max_pixels: int, reduce: int) -> Pixels:
        start = time.thread_time()
        try:
            return self.decode(data, max_bytes=max_bytes, max_pixels=max_pixels, reduce=reduce)
        finally:
            self.slowest = max(self.slowest, (time.thread_time() - start, f"{len(data)} bytes, {data[:12]!r}"))


def main(lines: Sequence[str] | Any) -> int:
    """Label what each line names."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    watch = images.decode = _Watch()  # type: ignore[assignment]
    for line in lines:
        folder, expected = line.rsplit(" ", 1)
        start = time.process_time()
        try:
            result = label(Path(folder), int(expected))
        except (Exception, RecursionError) as error:  # noqa: BLE001 what a user would see as a traceback
            result = {"reasons": {}, "shards": {"raised": 1}, "fault": f"{type(error).__name__}: {error}"}
        peak = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
        result |= {"seconds": time.process_time() - start, "slowest": watch.slowest, "peak": int(peak.split()[1])}
        watch.slowest = (0.0, "")
        print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(line.rstrip("\n") for line in sys.stdin))
