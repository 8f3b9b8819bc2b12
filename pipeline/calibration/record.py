"""A calibration, as a record and as a file, and what it adds to the instances of an image."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter, ValidationError

from pipeline.calibration.additive import Additive, Columns, Floats
from pipeline.config.types import STRICT, Natural, Share
from pipeline.errors import AccessError, StoreError, UnreachableError, UserError
from pipeline.records import Category, Instances
from pipeline.store import Store, redact

#: The columns that a calibration writes. None of its models reads those of an earlier one.
PREDICTED_IOU, PROBABILITY = "predicted_iou", "probability"
#: What every instance has to go by.
_ALWAYS = ("score", "log_area")
#: Whose masks a threshold goes by.
Basis: TypeAlias = Literal["class", "all", "none"]
_LIMIT = 16 << 20  # bytes
_ACCEPTED = "accepted is a file that `patchlabel calibrate` wrote"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a calibration comes from.

    run, run_id, fingerprint: of the labels. truth: its URI. images, masks, objects: how many both have. date: when, in
    ISO format. version: of this package.
    """

    __pydantic_config__ = STRICT
    run: str
    run_id: str
    fingerprint: str
    truth: str
    images: Natural
    masks: Natural
    objects: Natural
    date: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the thresholds are for: of what is kept of a class, at least `precision` is right.

    A mask is right if it is the match of an object of its class at mask IoU `iou`. The bound of `precision` holds with
    this `confidence` (one-sided).
    """

    __pydantic_config__ = STRICT
    precision: Share
    iou: Share
    confidence: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityModel:
    """Predicted IoU = f * i + (1 - f) * rest.

    found: f, the probability that the mask has an IoU of at least `Target.iou` with an object of its class. iou: i, the
    mean IoU of such masks, clamped to 0..1. rest: the mean IoU of the others.
    """

    __pydantic_config__ = STRICT
    found: Additive
    iou: Additive
    rest: Share

    def __call__(self, columns: Columns) -> Floats:
        """The predicted IoU of N masks, float64 [N] in 0..1."""
        found = self.found(columns)
        predicted: Floats = found * self.iou(columns).clip(0, 1) + (1 - found) * self.rest
        return predicted


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassThreshold:
    """A class, and the least probability at which its masks are kept; None keeps none of them.

    basis: whose masks the threshold goes by: its own, those of all classes as it has too few, or none as no threshold
    reaches the target. masks, objects: how many were there. kept, right: how many of the masks were kept on images that
    neither the models nor the threshold had seen, and how many of those were right.
    """

    __pydantic_config__ = STRICT
    id: int
    name: str
    threshold: Share | None
    basis: Basis
    masks: Natural
    objects: Natural
    kept: Natural
    right: Natural

    @property
    def precision(self) -> float | None:
        """The share of what was kept that was right; None where nothing was."""
        return self.right / self.kept if self.kept else None

    @property
    def recall(self) -> float | None:
        """The share of the objects that were found; None where there are none."""
        return self.right / self.objects if self.objects else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What scores and quality columns mean.

    quality: the predicted IoU. right: the probability that a mask is right. threshold: of classes that are not among
    `classes`; None keeps none of their masks.
    """

    __pydantic_config__ = STRICT
    format: Literal["patchlabel calibration"] = "patchlabel calibration"
    format_version: Literal[1] = 1
    source: Source
    target: Target
    quality: QualityModel
    right: Additive
    threshold: Share | None
    classes: Annotated[tuple[ClassThreshold, ...], Field(min_length=1)]

    @property
    def columns(self) -> tuple[str, ...]:
        """The quality columns that it reads."""
        needed = {*self.quality_columns, *self.right.features}
        return tuple(sorted(needed - {*_ALWAYS, PREDICTED_IOU}))

    @property
    def quality_columns(self) -> tuple[str, ...]:
        """Those of them that the predicted IoU depends on."""
        needed = {*self.quality.found.features, *self.quality.iou.features}
        return tuple(sorted(needed - {*_ALWAYS}))

    def predicted_iou(self, instances: Instances) -> npt.NDArray[np.float32]:
        """The predicted IoU of each mask, float32 [N]; NaN where none of its columns is known."""
        predicted = self.quality(features(instances, self.columns)).astype(np.float32)
        return np.where(self._known(instances), predicted, np.float32(np.nan))

    def apply(self, instances: Instances) -> Instances:
        """The instances with `predicted_iou` and `probability` as quality columns, which replace those of that name.

        What a person drew has no columns to judge it by, and NaN in both.
        """
        predicted = self.predicted_iou(instances)
        known = {**features(instances, self.columns), PREDICTED_IOU: predicted}
        probability = self.right(known, instances.category_ids).astype(np.float32)
        probability = np.where(np.isnan(predicted), np.float32(np.nan), probability)
        return replace(instances, quality={**instances.quality, PREDICTED_IOU: predicted, PROBABILITY: probability})

    def keeps(self, instances: Instances) -> npt.NDArray[np.bool_]:
        """Which masks are good enough for their class, bool [N].

        Raises:
            UserError: they lack the columns that the calibration goes by.
        """
        if len(instances) and (missing := [name for name in self.columns if name not in instances.quality]):
            raise UserError(
                f"the calibration goes by the quality column {missing[0]}, which the labels do not have; label them "
                "again with this version, or fit a calibration to them"
            )
        if PROBABILITY not in instances.quality:
            instances = self.apply(instances)
        least = {one.id: one.threshold for one in self.classes}
        thresholds = [least.get(id_, self.threshold) for id_ in instances.category_ids.tolist()]
        bounds = np.array([np.inf if one is None else one for one in thresholds], np.float64)
        return np.asarray(instances.quality[PROBABILITY] >= bounds, np.bool_)

    def check(self, categories: Sequence[Category], where: str) -> None:
        """Refuse labels in which a class of the calibration has another id.

        Args:
            categories: of the labels.
            where: what the sentence begins with.

        Raises:
            UserError: they differ.
        """
        theirs = {one.id: one.name for one in categories}
        for one in self.classes:
            if theirs.get(one.id, one.name) != one.name:
                raise UserError(
                    f"{where}: category {one.id} is {theirs[one.id]!r}, and {one.name!r} in the calibration"
                )

    def _known(self, instances: Instances) -> npt.NDArray[np.bool_]:
        known = np.full(len(instances), not self.columns)
        for name in self.columns:
            known |= ~np.isnan(instances.quality.get(name, instances.unknown()))
        return known


def features(instances: Instances, columns: Sequence[str]) -> dict[str, npt.NDArray[np.floating[Any]]]:
    """What models go by, each [N]: the score, the logarithm of the area in pixels, and quality columns (or NaN)."""
    return {
        "score": instances.scores,
        "log_area": np.log(np.maximum(instances.areas, 1)).astype(np.float64),
        **{name: instances.quality.get(name, instances.unknown()) for name in columns},
    }


def read(uri: str, store: Store, *, key: str = "--thresholds") -> Calibration:
    """Read a calibration.

    Raises:
        UserError: it is not there, or none; the sentence begins with `key`.
    """
    try:
        data = store.get(uri, limit=_LIMIT)
    except (AccessError, UnreachableError):
        raise
    except StoreError as error:  # it is not there, a directory, or too large
        raise UserError(f"{key}: {error}") from error
    try:
        calibration: Calibration = TypeAdapter(Calibration).validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        fault = f"{place}: {first['msg']}" if place else first["msg"]
        raise UserError(f"{key} {redact(uri)} is no calibration ({fault}); {_ACCEPTED}") from None
    return calibration


def write(calibration: Calibration, uri: str, store: Store) -> None:
    """Write a calibration as JSON, whole or not at all."""
    value: Mapping[str, Any] = asdict(calibration)
    store.put(uri, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())
