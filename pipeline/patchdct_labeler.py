"""The PatchDCT model (or any other of detectron2's instance-segmentation models) as a labeler."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from patchdct import build, categories, checkpoint, fast, predict, tta
from patchdct.config import load_config
from patchdct.errors import ModelError
from pipeline import calibration, integrity
from pipeline.calibration import Calibration
from pipeline.config import LabelerConfig, fingerprint
from pipeline.errors import NotFoundError, UserError
from pipeline.labelers import Prepared
from pipeline.records import Category, Instances, Pixels
from pipeline.store import Store, local_path, name, redact, scheme

Predictor: TypeAlias = predict.Predictor | tta.TtaPredictor | tta.MirroredPredictor

#: From the runs of a mask and of the others of its image; see `pipeline.integrity`.
INTEGRITY = ("duplicate_iou", "touches_border", "fragments", "holes")

log = logging.getLogger("pipeline.labeler")


class PatchDCTLabeler:
    """Loads a model once and labels with it, on the GPU that the process sees, else on the CPU with one thread.

    Its quality columns are predicted_iou, those of `predict.QUALITY` and INTEGRITY, and flip_agreement where that is
    asked for.
    """

    def __init__(self, config: LabelerConfig, store: Store) -> None:
        """Build the model.

        Raises:
            UserError: a config, weights or categories that cannot be used, in one sentence.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.cuda.get_device_name() if device == "cuda" else "CPU"
        if device == "cpu":
            torch.set_num_threads(1)  # workers are what uses the cores; more threads cost more than they bring
        if config.weights is None:
            raise UserError("labeler.weights is missing; give the path or URI of a checkpoint")
        if config.flip_agreement and config.tta is not None:
            raise UserError("labeler.flip_agreement is true together with labeler.tta; accepted is one of them")
        self._calibration = _calibration(config, store)
        weights = read_weights(config.weights, store)
        try:
            self._build(config, store, weights, device)
        except ModelError as error:
            raise UserError(str(error).replace(str(weights.path), redact(config.weights))) from error

    def _build(self, config: LabelerConfig, store: Store, weights: checkpoint.Checkpoint, device: str) -> None:
        settings = overrides(config)
        if config.config is not None:
            cfg = load_config(_local_config(config.config), settings)
        elif weights.config is not None:
            cfg = load_config(text=weights.config, overrides=settings)
        else:
            raise ModelError(f"checkpoint {weights.path} holds no model config; name one with labeler.config")
        built, _ = build.build_model(cfg, device=device, weights=weights)
        model = fast.optimised(built, dtype=predict.PRECISIONS[config.precision])
        self.categories = _categories(config, store, weights, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
        self._ids = np.array([c.id for c in self.categories], np.int32)
        make: Callable[..., Predictor] = predict.Predictor
        if config.tta is not None:
            make = tta.TtaPredictor
        elif config.flip_agreement:
            make = tta.MirroredPredictor
        augmentation = {} if config.tta is None else dataclasses.asdict(config.tta)
        late = resizes_on_device(config, device)
        self._predictor = make(model, cfg, precision=config.precision, resize_on_device=late, **augmentation)
        self._predictor.try_out(1, masks=1)  # what is loaded and compiled on first use is no part of a shard's time
        self.fingerprint = predict.fingerprint(
            cfg,
            weights.sha256,
            precision=config.precision,
            **augmentation,
            flip_agreement=config.flip_agreement,
            quality_model=None
            if self._calibration is None
            else fingerprint(dataclasses.asdict(self._calibration.quality)),
        )
        flip = (predict.FLIP_AGREEMENT,) if config.flip_agreement else ()
        self.quality = (calibration.PREDICTED_IOU, *predict.QUALITY, *INTEGRITY, *flip)
        self._check_columns(config)

    @property
    def model(self) -> torch.nn.Module:
        """The model as it is applied, for those who measure it."""
        model: torch.nn.Module = self._predictor.model
        return model

    def label(self, images: Sequence[Pixels]) -> list[Instances]:
        """Instance masks of RGB images; see `labelers.Labeler`."""
        return self.encode(self.find([self.prepare(image) for image in images]))

    def prepare(self, image: Pixels, size: tuple[int, int] | None = None) -> Prepared:
        """An RGB image as the model takes it; see `labelers.StagedLabeler`."""
        return self._predictor.prepare(image, size)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width that the model sees an image at; with versions, that of the largest."""
        return self._predictor.input_size(height, width)

    def find(self, batch: Sequence[Any]) -> predict.Fetched:
        """What the model finds in prepared images, on its way to the CPU."""
        if not torch.cuda.is_available() and torch.get_num_threads() > 1:  # each thread has its own number
            torch.set_num_threads(1)
        return predict.fetch(self._predictor.find(batch))

    def encode(self, found: predict.Fetched) -> list[Instances]:
        """The instances of each image, masks as RLE."""
        return [self._with_quality(predict.encode(one), *one.image_size) for one in found.wait()]

    def _with_quality(self, found: predict.Prediction, height: int, width: int) -> Instances:
        whole = integrity.measure(found.counts, height, width)
        columns = {calibration.PREDICTED_IOU: found.quality["expected_iou"], **found.quality}
        columns |= {name: getattr(whole, name).astype(np.float32) for name in INTEGRITY}
        instances = Instances(
            category_ids=self._ids[found.classes],
            scores=found.scores,
            boxes=found.boxes.astype(np.float32),
            areas=found.areas,
            counts=found.counts,
            quality=columns,
        )
        if self._calibration is not None:
            columns[calibration.PREDICTED_IOU] = self._calibration.predicted_iou(instances)
        return instances

    def _check_columns(self, config: LabelerConfig) -> None:
        """Refuse a model of quality that goes by what this labeler does not know."""
        needed = () if self._calibration is None else self._calibration.quality_columns
        if missing := [name for name in needed if name not in self.quality]:
            raise UserError(
                f"labeler.quality: {redact(config.quality or '')} goes by the column {missing[0]}, which is not made "
                "here" + ("; set labeler.flip_agreement to true" if missing[0] == predict.FLIP_AGREEMENT else "")
            )

    @functools.cache  # noqa: B019 it is as long-lived as its process
    def best_batch_size(self) -> int:
        """What labels most images a second here, found by trial."""
        best = predict.best_batch_size(self._predictor.try_out)
        log.info("labeler.batch_size: auto is %d here", best)
        return best


def read_weights(uri: str, store: Store, *, key: str = "labeler.weights") -> checkpoint.Checkpoint:
    """Read a checkpoint from wherever it is; one that is not local passes through a temporary file.

    Raises:
        UserError: it is not there, or no checkpoint; the sentence begins with `key`.
    """
    if scheme(uri) in ("", "file"):
        try:
            return checkpoint.read_checkpoint(local_path(uri))
        except ModelError as error:
            raise UserError(f"{key}: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / name(uri)
        try:
            with store.open(uri) as source, local.open("wb") as target:
                while block := source.read(1 << 22):
                    target.write(block)
            return checkpoint.read_checkpoint(local)
        except (ModelError, NotFoundError) as error:
            raise UserError(f"{key}: {error}".replace(str(local), redact(uri))) from error


def _calibration(config: LabelerConfig, store: Store) -> Calibration | None:
    if config.quality is None:
        log.info("labeler.quality is null: predicted_iou is expected_iou, which is not fitted to any truth")
        return None
    return calibration.read(config.quality, store, key="labeler.quality")


def resizes_on_device(config: LabelerConfig, device: str) -> bool:
    """Whether images are resized on `device`, the model's: where that is a CPU, other threads do it, and faster."""
    return config.resize == "gpu" and device == "cuda"


def _local_config(uri: str) -> str:
    if scheme(uri) not in ("", "file"):
        raise UserError(
            f"labeler.config is {redact(uri)}; accepted are a local file, and null for the config in the checkpoint"
        )
    return local_path(uri)


def overrides(config: LabelerConfig) -> list[str]:
    """The user's yacs KEY VALUE pairs, and those of settings: detections are capped before the mask head."""
    if len(config.overrides) % 2:
        raise UserError(
            f"labeler.overrides has {len(config.overrides)} items; accepted is one list of KEY VALUE pairs, such as "
            "[MODEL.ROI_HEADS.NUM_CLASSES, 3]"
        )
    pairs: dict[str, object] = {
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": config.score_threshold,
        "TEST.DETECTIONS_PER_IMAGE": config.max_instances,
    }
    if config.min_size is not None:
        pairs["INPUT.MIN_SIZE_TEST"] = config.min_size
    if config.max_size is not None:
        pairs["INPUT.MAX_SIZE_TEST"] = config.max_size
    return [*config.overrides, *(text for key, value in pairs.items() for text in (key, str(value)))]


def _categories(
    config: LabelerConfig, store: Store, weights: checkpoint.Checkpoint, count: int
) -> tuple[Category, ...]:
    """The meaning of the model's classes: as configured, else the checkpoint's, else COCO's 80 or Cityscapes' 8."""
    if config.categories is None:
        source, found = f"checkpoint {weights.path}", weights.categories or categories.known(count)
        if found is None:
            raise UserError(
                f"the model has {count} classes and the checkpoint does not name them; set labeler.categories to a "
                "list of names, a text file with a name a line, or a JSON file with their ids and names"
            )
    elif isinstance(config.categories, str):
        source = f"labeler.categories: {redact(config.categories)}"
        found = _read_categories(config.categories, store)
    else:
        source, found = "labeler.categories", tuple(enumerate(config.categories, start=1))
    if len(found) != count:
        raise ModelError(f"{source} names {len(found)} categories, and the model has {count} classes")
    if len({number for number, _ in found}) != count:
        raise ModelError(f"{source} gives the same id to several categories; each needs its own")
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
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"labeler.categories: {redact(uri)} holds no categories; accepted are a JSON list of objects with id and "
            "name, a COCO json, and a text file with a name a line"
        ) from error
