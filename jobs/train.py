"""Fit a PatchDCT model on COCO annotations: `python -m jobs.train --config FILE [--set key=value]...`.

Runs on this machine; the model, the losses, the schedule and the checkpoint are those of `patchdct.train`.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from jobs import coco_json, command
from patchdct import build, checkpoint, data, train
from patchdct.config import load_config
from patchdct.errors import DataError, ModelError
from pipeline import __version__
from pipeline.config import TrainConfig, load
from pipeline.errors import RunError, UserError
from pipeline.store import scheme

log = logging.getLogger("jobs.train")


def run(config: TrainConfig) -> Path:
    """Train, write checkpoints as `run.checkpoint_every` says, and return the path of the last.

    Raises:
        ValueError: data, model config or weights that cannot be used, in one sentence.
        patchdct.train.DivergedError: the loss is not finite.
    """
    out = _folder(config.run.storage) / config.run.name / "model.pth"
    device = train.prepare(seed=config.run.seed, threads=config.run.threads)
    images = Path(config.data.train.images)
    if not images.is_dir():
        raise UserError(f"data.train.images is {images}, which is no folder")
    truth = data.read_coco(Path(config.data.train.annotations), images)
    for record in truth.records:
        masks = (annotation["segmentation"] for annotation in record["annotations"])
        coco_json.check_masks(masks, f"{config.data.train.annotations}: annotations of {record['file_name']}")
    classes = ("MODEL.ROI_HEADS.NUM_CLASSES", str(len(truth.categories)))
    cfg = load_config(config.model.config, (*config.model.overrides, *classes))
    weights = Path(config.model.weights) if config.model.weights else None
    model = build.build_model(cfg, device=device, weights=weights, strict=False)[0]
    samples = data.TrainingSet(truth, cfg, seed=config.run.seed)
    batches = data.loader(samples, batch_size=config.schedule.batch_size, seed=config.run.seed)
    steps = config.schedule.steps
    schedule = train.Schedule(
        steps=steps,
        lr=config.schedule.lr,
        warmup=config.schedule.warmup,
        weight_decay=config.schedule.weight_decay,
        clip=config.schedule.clip,
        ema=config.schedule.ema,
        precision=config.schedule.precision,
    )
    _make_writable(out.parent)
    log.info("%d images, %d classes, %d steps on %s", len(samples), len(truth.categories), steps, device)
    start = time.monotonic()
    recent: deque[train.Progress] = deque(maxlen=20)
    for progress, state in train.fit(model, batches, schedule):
        recent.append(progress)
        done = progress.step + 1
        if done % 20 == 0 or done == steps:
            log.info(_line(recent, steps))
        if done % config.run.checkpoint_every == 0 or done == steps:
            provenance = {
                "version": __version__,
                "steps": done,
                "of": steps,
                "seconds": round(time.monotonic() - start),
                "annotations": config.data.train.annotations,
            }
            checkpoint.save_checkpoint(
                out,
                state,
                categories=truth.categories,
                config_text=cfg.dump(),
                provenance=provenance,
                half=config.run.half,
            )
    return out


def _folder(storage: str) -> Path:
    if scheme(storage):
        raise UserError(f"run.storage is {storage}; accepted is a local folder")
    return Path(storage)


def _make_writable(folder: Path) -> None:
    """Make the folder of the checkpoint now rather than after hours of training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run.storage: {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"run.storage: {folder} cannot be written")


def _line(recent: Sequence[train.Progress], steps: int) -> str:
    """The last steps in one line: mean losses, rate, speed, time left."""
    last = recent[-1]
    losses = {name: sum(p.losses[name] for p in recent) / len(recent) for name in last.losses}
    seconds = sum(p.seconds for p in recent) / len(recent)
    waited = sum(p.data_seconds for p in recent) / len(recent)
    parts = "  ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in losses.items())
    left = (steps - last.step - 1) * seconds / 60
    speed = f"{seconds:.2f} s/step (data {waited:.2f})  {left:.0f} min left"
    return f"step {last.step + 1}/{steps}  {parts}  lr {last.lr:.2e}  {speed}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0 when done, 1 when training failed, 2 when the input was refused."""
    options = command.parse("jobs.train", "Fit a PatchDCT model on COCO annotations.", argv)

    def work() -> int:
        try:
            log.info("wrote %s", run(load(TrainConfig, options.config, options.set)))
        except train.DivergedError as error:
            raise RunError(f"{str(error).rstrip('.')}; checkpoints written before that are kept") from error
        return command.DONE

    return command.guarded(work, (ModelError, DataError))


if __name__ == "__main__":
    sys.exit(main())
