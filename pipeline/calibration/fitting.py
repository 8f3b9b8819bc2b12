"""Masks and what became of them -> a calibration, and its figures on images that it did not see.

The images are dealt into folds by their keys. What is said of a fold comes from models and thresholds that were fitted
to the others (cross-fitting); the calibration itself is fitted to all.

Legend of shapes: N masks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.calibration import additive
from pipeline.calibration.additive import Additive, Floats
from pipeline.calibration.figures import (
    BAD_IOU,
    Flags,
    Ranking,
    Reliability,
    least_probability,
    possible_share,
    ranking,
    reliability,
)
from pipeline.calibration.record import PREDICTED_IOU, Basis, Calibration, ClassThreshold, QualityModel, Source, Target
from pipeline.errors import UserError
from pipeline.records import Category

FOLDS = 5
#: A class with fewer masks has the threshold of all classes: its own would be a matter of chance.
LEAST_MASKS = 50
#: What says, besides the score and the predicted IoU, whether a mask is the match of an object: another may have it.
_RIVALS = "duplicate_iou"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Masks on images whose objects are known.

    folds: int64 [N], the fold of each mask's image. classes: category ids [N]. columns: by name, [N], `score` and
    `log_area` among them. iou, right: as of `matching.Judged`. objects: how many there are of each category.
    """

    folds: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int64]
    columns: Mapping[str, npt.NDArray[np.float64]]
    iou: Floats
    right: Flags
    objects: Mapping[int, int]

    def where(self, chosen: Flags) -> Sample:
        """Those of the masks that are chosen, bool [N]."""
        return Sample(
            folds=self.folds[chosen],
            classes=self.classes[chosen],
            columns={name: values[chosen] for name, values in self.columns.items()},
            iou=self.iou[chosen],
            right=self.right[chosen],
            objects=self.objects,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """How well some of the masks are sorted by what is known of them: the score, and the predicted IoU.

    bad: how many have an IoU below BAD_IOU. possible: which share of these could be among the worst tenth at most.
    """

    name: str
    masks: int
    bad: int
    possible: float | None
    score: Ranking
    predicted: Ranking


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a calibration is worth on images that it was not fitted to.

    before, after: how the score, and the probability, compare with what is right.
    """

    groups: tuple[Group, ...]
    before: Reliability
    after: Reliability


@dataclass(frozen=True, slots=True, kw_only=True)
class _Models:
    quality: QualityModel
    right: Additive

    def probability(self, sample: Sample) -> tuple[Floats, Floats]:
        """The predicted IoU and the probability of each mask."""
        predicted = self.quality(sample.columns)
        return predicted, self.right({**sample.columns, PREDICTED_IOU: predicted}, sample.classes)


def fold_of(key: str) -> int:
    """The fold of an image, by its key alone."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:4], "big") % FOLDS


def fit(
    sample: Sample, categories: Sequence[Category], *, target: Target, source: Source
) -> tuple[Calibration, Figures]:
    """Fit a calibration.

    Args:
        sample: masks of at least two folds, of which some are right.
        categories: the classes that have a threshold.
        target: what the thresholds are for.
        source: what the calibration says of where it comes from.

    Raises:
        UserError: there is too little to fit to.
    """
    folds = np.unique(sample.folds)
    matched = np.unique(sample.folds[sample.iou >= target.iou])
    if len(matched) < 2:
        raise UserError(
            f"the run has {len(sample.iou)} masks on images of the truth, and {int((sample.iou >= target.iou).sum())} "
            f"of them match an object at IoU {target.iou:g}: too few to fit to; label more of the truth's images"
        )
    predicted, probability = np.zeros(len(sample.iou)), np.zeros(len(sample.iou))
    for fold in folds:
        held = sample.folds == fold
        predicted[held], probability[held] = _models(sample.where(~held), target).probability(sample.where(held))
    threshold = _threshold(probability, sample.right, target)
    models = _models(sample, target)
    thresholds = {one.id: _of_class(sample, one.id, probability, threshold, target) for one in categories}
    kept = _held_out_choice(sample, [one.id for one in categories], probability, target)
    calibration = Calibration(
        source=source,
        target=target,
        quality=models.quality,
        right=models.right,
        threshold=threshold,
        classes=tuple(_class_threshold(sample, one, kept, *thresholds[one.id]) for one in categories),
    )
    return calibration, figures(sample, predicted, probability, kept, target)


def measure(sample: Sample, calibration: Calibration) -> tuple[Figures, tuple[ClassThreshold, ...]]:
    """What a calibration and its thresholds are worth on masks, none of which they should have been fitted to."""
    models = _Models(quality=calibration.quality, right=calibration.right)
    predicted, probability = models.probability(sample)
    least = {one.id: one.threshold for one in calibration.classes}
    bounds = [least.get(id_, calibration.threshold) for id_ in sample.classes.tolist()]
    kept = probability >= np.array([np.inf if one is None else one for one in bounds])
    classes = tuple(
        _class_threshold(sample, Category(id=one.id, name=one.name), kept, one.threshold, one.basis)
        for one in calibration.classes
    )
    return figures(sample, predicted, probability, kept, calibration.target), classes


def figures(sample: Sample, predicted: Floats, probability: Floats, kept: Flags, target: Target) -> Figures:
    """The figures of predictions [N], of which the masks `kept` are above their thresholds."""
    named = {
        "all masks": np.ones(len(sample.iou), bool),
        f"masks that match an object (IoU {target.iou:g})": sample.iou >= target.iou,
        "masks that the thresholds keep": kept,
    }
    return Figures(
        groups=tuple(_group(name, sample.where(chosen), predicted[chosen]) for name, chosen in named.items()),
        before=reliability(sample.columns["score"], sample.right),
        after=reliability(probability, sample.right),
    )


def _class_threshold(
    sample: Sample, category: Category, kept: Flags, threshold: float | None, basis: Basis
) -> ClassThreshold:
    """A class with what became of its masks, of which those of `kept` were kept."""
    mine = sample.classes == category.id
    return ClassThreshold(
        id=category.id,
        name=category.name,
        threshold=threshold,
        basis=basis,
        masks=int(mine.sum()),
        objects=sample.objects.get(category.id, 0),
        kept=int((kept & mine).sum()),
        right=int((kept & mine & sample.right).sum()),
    )


def _group(name: str, sample: Sample, predicted: Floats) -> Group:
    bad = sample.iou < BAD_IOU
    return Group(
        name=name,
        masks=len(bad),
        bad=int(bad.sum()),
        possible=possible_share(bad),
        score=ranking(sample.columns["score"], sample.iou),
        predicted=ranking(predicted, sample.iou),
    )


def _models(sample: Sample, target: Target) -> _Models:
    """Both models. What `right` learns of predicted IoUs is of masks that they were not fitted to, as in use."""
    predicted = np.zeros(len(sample.iou))
    for fold in np.unique(sample.folds):
        held = sample.folds == fold
        rest = sample if held.all() else sample.where(~held)
        predicted[held] = _quality(rest, target)(sample.where(held).columns)
    names = [name for name in ("score", _RIVALS) if name in sample.columns]
    columns = {**{name: sample.columns[name] for name in names}, PREDICTED_IOU: predicted}
    return _Models(quality=_quality(sample, target), right=additive.fit_share(columns, sample.right, sample.classes))


def _quality(sample: Sample, target: Target) -> QualityModel:
    found = sample.iou >= target.iou
    matched = sample.where(found)
    return QualityModel(
        found=additive.fit_share(sample.columns, found),
        iou=additive.fit_mean(matched.columns, matched.iou) if found.any() else _constant(target.iou),
        rest=float(sample.iou[~found].mean()) if not found.all() else 0.0,
    )


def _constant(value: float) -> Additive:
    return Additive(link="identity", intercept=value, terms=())


def _threshold(probability: Floats, right: Flags, target: Target) -> float | None:
    return least_probability(probability, right, precision=target.precision, confidence=target.confidence)


def _of_class(
    sample: Sample, category: int, probability: Floats, of_all: float | None, target: Target
) -> tuple[float | None, Basis]:
    """The threshold of a class, and whose masks it goes by."""
    mine = sample.classes == category
    few = mine.sum() < LEAST_MASKS
    threshold = of_all if few else _threshold(probability[mine], sample.right[mine], target)
    return threshold, "none" if threshold is None else "all" if few else "class"


def _held_out_choice(sample: Sample, categories: Sequence[int], probability: Floats, target: Target) -> Flags:
    """Which masks thresholds keep that were chosen without the fold of each, bool [N]."""
    kept = np.zeros(len(probability), bool)
    for fold in np.unique(sample.folds):
        held = sample.folds == fold
        others, chances = sample.where(~held), probability[~held]
        of_all = _threshold(chances, others.right, target)
        for category in categories:
            threshold, _ = _of_class(others, category, chances, of_all, target)
            if threshold is not None:
                kept |= held & (sample.classes == category) & (probability >= threshold)
    return kept
