"""Compares mask heads that were trained alike: the three of configs/train/heads.yaml, with three seeds each.

    python -m tests.jobs.heads FOLDER SCENES [IMAGES]

FOLDER holds HEAD-SEED/model.pth, SCENES a folder that patchdct.scenes drew and that none of them was trained on. Each
checkpoint labels the first IMAGES scenes in float32; out come AP and boundary AP of each, then mean and spread
(standard deviation over the seeds) of each head.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from patchdct import build, checkpoint, evaluate, predict, train
from patchdct.config import load_config

HEADS, SEEDS = ("patchdct", "maskrcnn", "dctmask"), (1, 2, 3)
FIGURES = (("mask", "AP"), ("mask", "AP50"), ("mask", "AP75"), ("boundary", "AP"))


def measure(weights: Path, scenes: Path, images: int) -> dict[str, float]:
    """The figures of one checkpoint."""
    read = checkpoint.read_checkpoint(weights)
    cfg = load_config(text=read.config)
    label = predict.Predictor(build.build_model(cfg, weights=read)[0], cfg)
    truth = json.loads((scenes / "annotations.json").read_text())
    records = truth["images"][:images]
    results: list[dict[str, Any]] = []
    for record in records:
        pixels = np.asarray(Image.open(scenes / "images" / record["file_name"]).convert("RGB"))
        (found,) = label([pixels])
        results += [
            {
                "image_id": record["id"],
                "category_id": (read.categories or ())[int(kind)][0],
                "score": float(score),
                "segmentation": {"size": [record["height"], record["width"]], "counts": counts},
            }
            for kind, score, counts in zip(found.classes, found.scores, found.counts, strict=True)
        ]
    report = evaluate.evaluate(truth, results, image_ids=[record["id"] for record in records])
    return {f"{section} {name}": report[section][name] for section, name in FIGURES}


def main(folder: Path, scenes: Path, images: int) -> None:
    """Measure what is there and print it."""
    train.prepare(seed=0, threads=1)
    for head in HEADS:
        rows = []
        for seed in SEEDS:
            weights = folder / f"{head}-{seed}" / "model.pth"
            if weights.is_file():
                rows.append(measure(weights, scenes, images))
                print(head, seed, {name: round(value, 4) for name, value in rows[-1].items()}, flush=True)
        for name in rows[0] if len(rows) > 1 else ():
            values = [100 * row[name] for row in rows]
            print(f"{head:9} {name:12} {statistics.mean(values):5.1f} +- {statistics.stdev(values):.1f}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 150)
