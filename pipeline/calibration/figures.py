"""How good predictions of quality are, in figures that do not depend on how they were made.

Legend of shapes: N masks, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from scipy import stats

from pipeline.calibration.additive import Floats

Flags = npt.NDArray[np.bool_]

#: Bins of equal width of a calibration error.
BINS = 15
#: A mask is bad below this IoU, and the worst are this share.
BAD_IOU, WORST = 0.75, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """How well a prediction sorts masks.

    spearman: its rank correlation with the IoU; None where either is the same for all. worst_bad: the share of the bad
    masks (IoU below BAD_IOU) among the WORST share by prediction; None where none is bad.
    """

    spearman: float | None
    worst_bad: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """What became of masks by predicted probability, in B bins of equal width.

    predicted, right: float64 [B], the mean probability and the share that was right, NaN in an empty bin. counts: int64
    [B]. error: the expected calibration error, the mean of |predicted - right| over masks.
    """

    predicted: Floats
    right: Floats
    counts: npt.NDArray[np.int64]
    error: float


def ranking(predicted: Floats, iou: Floats) -> Ranking:
    """How well predictions [N] sort masks by their IoU [N]."""
    return Ranking(spearman=spearman(predicted, iou), worst_bad=worst_share(predicted, iou < BAD_IOU))


def spearman(first: Floats, second: Floats) -> float | None:
    """Spearman's rank correlation, with mean ranks for ties; None where one is constant.

    >>> spearman(np.array([1.0, 2.0, 3.0, 9.0]), np.array([0.1, 0.3, 0.2, 0.7]))
    0.8
    """
    if not len(first) or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return round(float(stats.spearmanr(first, second).statistic), 12)


def worst_share(predicted: Floats, bad: Flags) -> float | None:
    """The share of the bad masks among the worst by prediction; None where none is bad.

    >>> worst_share(np.arange(10.0), np.arange(10) < 4)
    0.25
    """
    if not bad.any():
        return None
    worst = np.argsort(predicted, kind="stable")[: _worst(len(predicted))]
    return float(bad[worst].sum() / bad.sum())


def possible_share(bad: Flags) -> float | None:
    """What `worst_share` can be at most: more bad masks than a tenth do not fit into a tenth."""
    return min(1.0, _worst(len(bad)) / int(bad.sum())) if bad.any() else None


def _worst(number: int) -> int:
    return int(np.ceil(number * WORST))


def reliability(probability: Floats, right: Flags) -> Reliability:
    """Compare probabilities [N] with what was right [N].

    >>> round(reliability(np.array([0.9, 0.9, 0.1, 0.1]), np.array([True, False, False, False])).error, 6)
    0.25
    """
    bins = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        predicted, share = (
            np.bincount(bins, weights=values.astype(np.float64), minlength=BINS) / counts
            for values in (probability, right)
        )
    gaps = np.abs(predicted - share)[counts > 0]
    error = float(gaps @ counts[counts > 0] / max(1, len(probability)))
    return Reliability(predicted=predicted, right=share, counts=counts, error=error)


def lower_bound(right: npt.NDArray[np.int64], kept: npt.NDArray[np.int64], confidence: float) -> Floats:
    """Wilson's lower bound of a share, one-sided, for counts [N] of which `kept` are at least 1.

    >>> lower_bound(np.array([90]), np.array([100]), 0.9).round(3).tolist()
    [0.855]
    """
    z = NormalDist().inv_cdf(confidence)
    share = right / kept
    centre = share + z * z / (2 * kept)
    margin = z * np.sqrt(share * (1 - share) / kept + z * z / (4 * kept * kept))
    return np.asarray((centre - margin) / (1 + z * z / kept), np.float64)


def least_probability(probability: Floats, right: Flags, *, precision: float, confidence: float) -> float | None:
    """The least probability from which on masks are right often enough, or None.

    Of all ways to keep the masks above a probability, it keeps the most of those where the lower bound of the share
    that is right reaches `precision`. The threshold lies half-way to the next mask below.
    """
    order = np.argsort(-probability, kind="stable")
    values, hits = probability[order], np.cumsum(right[order].astype(np.int64))
    kept = np.arange(1, len(values) + 1)
    last = np.append(values[1:] < values[:-1], True) if len(values) else np.zeros(0, bool)  # of equal ones
    enough = np.flatnonzero(last & (lower_bound(hits, kept, confidence) >= precision))
    if not len(enough):
        return None
    place = int(enough[-1])
    below = values[place + 1] if place + 1 < len(values) else 0.0
    return float((values[place] + below) / 2)
