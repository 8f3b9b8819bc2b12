"""Compares mask heads that were trained alike: the three of configs/train/heads.yaml, with three seeds each.

    python -m tests.jobs.heads FOLDER SCENES [IMAGES]

FOLDER holds HEAD-SEED/model.pth, SCENES a folder that patchdct.scenes drew and that none of them was trained on. Each
checkpoint labels the first IMAGES scenes in float32; out come AP and boundary AP of each, then mean and spread
(standard deviation over the seeds) of each head.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import replace
from pathlib import Path

from jobs import measuring
from jobs.reading import ReadImage
from patchdct import build, checkpoint, predict, train
from patchdct.config import load_config
from pipeline import datasets
from pipeline.config import DatasetConfig
from pipeline.store import Store

HEADS, SEEDS = ("patchdct", "maskrcnn", "dctmask"), (1, 2, 3)
FIGURES = ("mask AP", "mask AP50", "mask AP75", "boundary AP")


def figures(weights: Path, scenes: Path, images: int) -> dict[str, float]:
    """The figures of one checkpoint."""
    read = checkpoint.read_checkpoint(weights)
    cfg = load_config(text=read.config)
    label = predict.Predictor(build.build_model(cfg, weights=read)[0], cfg)
    drawn = DatasetConfig(annotations=str(scenes / "annotations.json"), images=str(scenes / "images"))
    whole = datasets.read(drawn, Store(), key="scenes")
    truth = replace(whole, uris=dict(list(whole.uris.items())[:images]))
    found, _ = measuring.measure(label, truth, ReadImage(Store()), categories=read.categories or (), max_detections=100)
    return {name: found[f"val {name}"] for name in FIGURES}


def main(folder: Path, scenes: Path, images: int) -> None:
    """Measure what is there and print it."""
    train.prepare(seed=0, threads=1)
    for head in HEADS:
        rows = []
        for seed in SEEDS:
            weights = folder / f"{head}-{seed}" / "model.pth"
            if weights.is_file():
                rows.append(figures(weights, scenes, images))
                print(head, seed, {name: round(value, 4) for name, value in rows[-1].items()}, flush=True)
        for name in rows[0] if len(rows) > 1 else ():
            values = [100 * row[name] for row in rows]
            print(f"{head:9} {name:12} {statistics.mean(values):5.1f} +- {statistics.stdev(values):.1f}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 150)
