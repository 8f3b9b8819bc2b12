"""The PatchDCT model (or any other of detectron2's instance-segmentation models) as a labeler."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from patchdct import build, categories, checkpoint, predict
from patchdct.config import load_config
from patchdct.errors import ModelError
from pipeline.config import LabelerConfig
from pipeline.errors import NotFoundError, UserError
from pipeline.records import Category, Instances, Pixels
from pipeline.store import Store, name, scheme
from pipeline.store.uris import local_path


class PatchDCTLabeler:
    """Loads a model once and labels with it, on the GPU that the process sees, else on the CPU with one thread."""

    quality: tuple[str, ...] = ()

    def __init__(self, config: LabelerConfig, store: Store) -> None:
        """Build the model.

        Raises:
            UserError: a config, weights or categories that cannot be used, in one sentence.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            torch.set_num_threads(1)  # workers are what uses the cores; more threads cost more than they bring
        try:
            self._build(config, store, device)
        except ModelError as error:
            raise UserError(str(error)) from error

    def _build(self, config: LabelerConfig, store: Store, device: str) -> None:
        if config.weights is None:
            raise UserError("labeler.weights is missing; give the path or URI of a checkpoint")
        weights = _read_weights(config.weights, store)
        overrides = [*config.overrides, *_overrides(config)]
        if config.config is not None:
            cfg = load_config(config.config, overrides)
        elif weights.config is not None:
            cfg = load_config(text=weights.config, overrides=overrides)
        else:
            raise UserError(f"{config.weights} carries no model config; name one with labeler.config")
        self.categories = _categories(config, store, weights, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
        self._ids = np.array([c.id for c in self.categories], np.int32)
        model, _ = build.build_model(cfg, device=device, weights=weights)
        self._predict = predict.Predictor(model, cfg, precision=config.precision)
        self.fingerprint = predict.fingerprint(cfg, weights.sha256, precision=config.precision)

    def label(self, images: Sequence[Pixels]) -> list[Instances]:
        """Instance masks of RGB images; see `labelers.Labeler`."""
        return [
            Instances(
                category_ids=self._ids[found.classes],
                scores=found.scores,
                boxes=found.boxes.astype(np.float32),
                areas=found.areas,
                counts=found.counts,
            )
            for found in self._predict(images)
        ]


def _read_weights(uri: str, store: Store) -> checkpoint.Checkpoint:
    """Read a checkpoint from wherever it is; one that is not local passes through a temporary file."""
    if scheme(uri) in ("", "file"):
        return checkpoint.read_checkpoint(local_path(uri))
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / name(uri)
        try:
            with store.open(uri) as source, local.open("wb") as target:
                while block := source.read(1 << 22):
                    target.write(block)
        except NotFoundError as error:
            raise UserError(f"labeler.weights: {error}") from error
        return checkpoint.read_checkpoint(local)


def _overrides(config: LabelerConfig) -> list[str]:
    """The settings of a labeler as yacs KEY VALUE pairs: detections are thresholded and capped before the mask head."""
    pairs: dict[str, object] = {
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": config.score_threshold,
        "TEST.DETECTIONS_PER_IMAGE": config.max_instances,
    }
    if config.min_size is not None:
        pairs["INPUT.MIN_SIZE_TEST"] = config.min_size
    if config.max_size is not None:
        pairs["INPUT.MAX_SIZE_TEST"] = config.max_size
    return [text for key, value in pairs.items() for text in (key, str(value))]


def _categories(
    config: LabelerConfig, store: Store, weights: checkpoint.Checkpoint, count: int
) -> tuple[Category, ...]:
    """The meaning of the model's classes: as configured, else the checkpoint's, else COCO's 80 or Cityscapes' 8."""
    if config.categories is None:
        source, found = "the checkpoint", weights.categories or categories.known(count)
        if found is None:
            raise UserError(
                f"the model has {count} classes and the checkpoint does not name them; set labeler.categories to a "
                "list of names, a text file with a name a line, or a JSON file with their ids and names"
            )
    elif isinstance(config.categories, str):
        source, found = config.categories, _read_categories(config.categories, store)
    else:
        source, found = "labeler.categories", tuple(enumerate(config.categories, start=1))
    if len(found) != count or len({i for i, _ in found}) != count:
        raise UserError(f"{source} names {len(found)} categories for a model of {count} classes; give each its own id")
    return tuple(Category(id=i, name=name) for i, name in found)


def _read_categories(uri: str, store: Store) -> tuple[tuple[int, str], ...]:
    """A JSON list (or COCO json) of {"id", "name"}, or a text file with a name a line for ids 1, 2, ..."""
    try:
        text = store.get(uri).decode("utf-8")
        if not uri.endswith(".json"):
            return tuple(enumerate((line.strip() for line in text.splitlines() if line.strip()), start=1))
        rows = json.loads(text)
        rows = rows["categories"] if isinstance(rows, dict) else rows
        return tuple(sorted((int(row["id"]), str(row["name"])) for row in rows))
    except NotFoundError as error:
        raise UserError(f"labeler.categories: {error}") from error
    except (UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"labeler.categories: {uri} holds no categories ({error!r}); accepted are a JSON list of id and name, a "
            "COCO json, and a text file with a name a line"
        ) from error
