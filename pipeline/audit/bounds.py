"""Shares and means of samples, with bounds. Counts may be fractions, as those of effective sample sizes are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from scipy.special import betaincinv

#: Of a two-sided interval; a decision is one-sided, at the same level.
CONFIDENCE = 0.95

Decision: TypeAlias = Literal["accepted", "rejected", "not decided"]

_Z = 1.959963984540054  # of 95 %, two-sided


@dataclass(frozen=True, slots=True, kw_only=True)
class Stratum:
    """A group that was sampled on its own: `size` in all, of which `answered` were judged and `right` were right."""

    size: int
    answered: int
    right: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A share with bounds, which hold together with a confidence of CONFIDENCE.

    value, low, high: None where nothing was answered. answered: how many. effective: how many answers of a simple
    random sample of a large run would say as much; None where all that is known was judged, and so is exact. covered:
    the share of all that is in strata with an answer; the figures speak of these alone.
    """

    value: float | None
    low: float | None
    high: float | None
    answered: int
    effective: float | None
    covered: float


def share(strata: Sequence[Stratum]) -> Share:
    """The share of what is right, of strata together: each counts by its size.

    The bounds are exact ones (Clopper and Pearson) for an effective sample size: that at which a simple random sample
    would have the variance of the stratified one (Korn and Graubard), and no more than the weights alone allow, as few
    answers tell little of a variance. With one stratum, of which a small part was judged, it is the number of answers.
    """
    total = sum(one.size for one in strata)
    known = [one for one in strata if one.answered and one.size]
    size = sum(one.size for one in known)
    if not known:
        return Share(value=None, low=None, high=None, answered=0, effective=0.0, covered=0.0)
    value = sum(one.size / size * one.right / one.answered for one in known)
    alike = variance = 0.0
    for one in known:
        part = (one.size / size) ** 2 / one.answered * unsure(one.answered / one.size)
        alike += part
        variance += part * (one.right / one.answered) * (1 - one.right / one.answered)
    answered, covered = sum(one.answered for one in known), size / total
    if alike <= 0:
        return Share(value=value, low=value, high=value, answered=answered, effective=None, covered=covered)
    effective = min(1 / alike, value * (1 - value) / variance if variance > 0 else math.inf)
    low, high = interval(value * effective, effective)
    return Share(value=value, low=low, high=high, answered=answered, effective=effective, covered=covered)


def unsure(judged: float) -> float:
    """The part of a variance that is left where a share of all, 0..1, was judged: 1 for none of it, 0 for all.

    It is what makes the bounds of a sample without a fault those of drawing without replacement; it is more than the
    usual 1 - judged.

    >>> [round(unsure(share), 3) for share in (0, 0.1, 0.5, 1)]
    [1.0, 0.949, 0.721, 0.0]
    """
    if judged <= 0 or judged >= 1:
        return 1.0 if judged <= 0 else 0.0
    return -judged / math.log1p(-judged)


def interval(right: float, of: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The exact two-sided interval (Clopper and Pearson) of a share.

    >>> tuple(round(bound, 4) for bound in interval(9, 10))
    (0.555, 0.9975)
    """
    rest = (1 - confidence) / 2
    return at_least(right, of, 1 - rest), at_most(right, of, 1 - rest)


def at_least(right: float, of: float, confidence: float = CONFIDENCE) -> float:
    """The lower bound of a share, one-sided.

    >>> round(at_least(59, 59), 4)  # the known rule: 59 without a fault for 95 %
    0.9505
    """
    return 0.0 if right <= 0 else float(betaincinv(right, of - right + 1, 1 - confidence))


def at_most(right: float, of: float, confidence: float = CONFIDENCE) -> float:
    """The upper bound of a share, one-sided."""
    return 1.0 if right >= of else float(betaincinv(right + 1, of - right, confidence))


def decide(found: Share, size: int, target: float) -> tuple[Decision, int | None]:
    """Whether a share is at least `target`, and if that is not decided, how many answers in all would do.

    Args:
        found: what the sample says.
        size: of what the sample was drawn from.
        target: in 0..1.

    Returns:
        The decision, which is wrong in at most 1 - CONFIDENCE of cases, and the number of answers at which the same
        share would decide it, `size` at most; None where it is decided, or nothing was answered.
    """
    if found.value is None:
        return "not decided", None
    value, answered = found.value, found.answered
    if found.effective is None or _decided(value, found.effective, target):
        return ("accepted" if value >= target else "rejected"), None
    each = found.effective * unsure(answered / size) / answered
    low, high = answered, size
    while high - low > 1:  # nearly monotonous, which is as good as needed for a hint
        middle = (low + high) // 2
        enough = _decided(value, each * middle / unsure(middle / size), target)
        low, high = (low, middle) if enough else (middle, high)
    return "not decided", high


def _decided(value: float, of: float, target: float) -> bool:
    right = value * of
    return at_least(right, of) >= target if value >= target else at_most(right, of) < target


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """A mean with normal bounds; None where there are too few values for them."""

    value: float | None
    low: float | None
    high: float | None
    number: int


def mean(values: Sequence[tuple[float, float]]) -> Mean:
    """The mean of values in 0..1, given as (value, weight), with bounds from the variance between them.

    Fewer than five values have no bounds.
    """
    if not values:
        return Mean(value=None, low=None, high=None, number=0)
    total = sum(weight for _, weight in values)
    middle = sum(value * weight for value, weight in values) / total
    number = len(values)
    if number < 5:
        return Mean(value=middle, low=None, high=None, number=number)
    squares = sum((weight / total * (value - middle)) ** 2 for value, weight in values)
    half = _Z * math.sqrt(squares * number / (number - 1))
    return Mean(value=middle, low=max(0.0, middle - half), high=min(1.0, middle + half), number=number)


def ratio(pairs: Sequence[tuple[int, int]]) -> Mean:
    """How many there are of one thing for each of another, by a random sample of pairs of counts (one, other).

    Normal bounds from the residuals; none where fewer than five pairs have any of the one.
    """
    total, number = sum(other for _, other in pairs), len(pairs)
    if not total:
        return Mean(value=None, low=None, high=None, number=number)
    value = sum(one for one, _ in pairs) / total
    if sum(one > 0 for one, _ in pairs) < 5:
        return Mean(value=value, low=None, high=None, number=number)
    squares = sum((one - value * other) ** 2 for one, other in pairs)
    half = _Z * math.sqrt(squares * number / (number - 1)) / total
    return Mean(value=value, low=max(0.0, value - half), high=value + half, number=number)
