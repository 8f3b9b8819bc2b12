"""Additive models: a sum of piecewise-linear functions, one a feature, which can be drawn and read.

They are fitted in closed form (a mean, by ridge regression) or in a few steps of Newton's method (a share, by logistic
regression). A value that is not known (NaN) adds nothing, which is what the mean of its feature adds.

Legend of shapes: N masks, K knots of a feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.config.types import STRICT, Finite

Floats: TypeAlias = npt.NDArray[np.float64]
Columns: TypeAlias = Mapping[str, npt.NDArray[np.floating]]
Ids: TypeAlias = npt.NDArray[np.integer]

#: At most so many knots a feature, at its quantiles.
_KNOTS = 7
#: How strongly values at knots, and offsets of classes, are drawn to zero: as by so many masks of weight 1.
_RIDGE, _CLASS_RIDGE = 1.0, 4.0
#: How strongly the intercept is drawn to the logit of the mean.
_LIGHT_RIDGE = 1e-3
_NEWTON_STEPS, _LONGEST_STEP, _ENOUGH = 50, 5.0, 1e-8
_FARTHEST = 30.0  # a logit beyond which a share is 0 or 1 to all digits that matter


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """What a feature adds: `values` at `knots`, linear in between and constant beyond."""

    __pydantic_config__ = STRICT
    feature: str
    knots: tuple[Finite, ...]
    values: tuple[Finite, ...]

    def __post_init__(self) -> None:
        if not self.knots or len(self.knots) != len(self.values):
            raise ValueError("as many values as knots, at least one")
        if any(after <= before for before, after in zip(self.knots, self.knots[1:], strict=False)):
            raise ValueError("knots that ascend")

    def __call__(self, column: npt.NDArray[np.floating]) -> Floats:
        """What each of N values adds, float64 [N]; 0 for NaN."""
        added = np.interp(column.astype(np.float64), self.knots, self.values)
        return np.where(np.isnan(column), 0.0, added)


@dataclass(frozen=True, slots=True, kw_only=True)
class Additive:
    """intercept + sum of terms + the offset of the class; through the logistic function if that is the link.

    offsets: by category id; a class that is not there has none.
    """

    __pydantic_config__ = STRICT
    link: Literal["identity", "logistic"]
    intercept: Finite
    terms: tuple[Term, ...]
    offsets: Mapping[int, Finite] = field(default_factory=dict)

    @property
    def features(self) -> tuple[str, ...]:
        """The features that it needs."""
        return tuple(term.feature for term in self.terms)

    def __call__(self, columns: Columns, classes: Ids | None = None) -> Floats:
        """The prediction for N masks, float64 [N].

        Args:
            columns: of each of `features`, [N], and at least one.
            classes: category ids [N]; None: no offset is added.
        """
        total = np.full(len(next(iter(columns.values()))), self.intercept)
        for term in self.terms:
            total += term(columns[term.feature])
        if self.offsets and classes is not None:
            ids, places = np.unique(classes, return_inverse=True)
            total += np.array([self.offsets.get(int(one), 0.0) for one in ids])[places]
        return logistic(total) if self.link == "logistic" else total


def logistic(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -_FARTHEST, _FARTHEST))), np.float64)


def fit_mean(columns: Columns, target: Floats) -> Additive:
    """The additive model of least squares, with a ridge, for a target [N] of N >= 1 masks."""
    design = _Design(columns, None)
    centre = float(target.mean())
    penalty = np.diag(design.ridge)
    weights = np.linalg.solve(design.matrix.T @ design.matrix + penalty, design.matrix.T @ (target - centre))
    return design.model("identity", centre, weights)


def fit_share(columns: Columns, target: npt.NDArray[np.bool_], classes: Ids | None = None) -> Additive:
    """The additive model of the logit of P(target) of highest likelihood, with a ridge, for N >= 1 masks."""
    design = _Design(columns, classes)
    matrix = np.hstack([np.ones((len(target), 1)), design.matrix])
    prior = (target.sum() + 1) / (len(target) + 2)  # not 0 or 1 even where all masks are alike
    weights = np.zeros(matrix.shape[1])
    weights[0] = np.log(prior / (1 - prior))
    anchor, ridge = weights.copy(), np.diag([_LIGHT_RIDGE, *design.ridge])
    for _ in range(_NEWTON_STEPS):
        shares = logistic(matrix @ weights)
        slope = matrix.T @ (target - shares) - ridge @ (weights - anchor)
        curvature = (matrix * (shares * (1 - shares))[:, None]).T @ matrix + ridge
        step = np.linalg.solve(curvature, slope)
        # Newton's method may jump too far where shares are near 0 or 1.
        step *= min(1.0, _LONGEST_STEP / max(_ENOUGH, float(np.abs(step).max())))
        weights += step
        if np.abs(step).max() < _ENOUGH:
            break
    return design.model("logistic", float(weights[0]), weights[1:])


class _Design:
    """The columns of a regression: the hat functions of each feature, centred, and an indicator of each class."""

    def __init__(self, columns: Columns, classes: Ids | None) -> None:
        parts: list[Floats] = []
        self._features: list[tuple[str, Floats, Floats]] = []
        for feature, column in columns.items():
            known = column[~np.isnan(column)].astype(np.float64)
            knots = np.unique(np.quantile(known, np.linspace(0, 1, _KNOTS))) if len(known) else known
            if len(knots) < 2:
                continue  # it is the same for all
            hats = np.stack([np.interp(column, knots, one) for one in np.eye(len(knots))], axis=1)
            missing = np.isnan(column)
            means = hats[~missing].mean(axis=0)
            parts.append(np.where(missing[:, None], 0.0, hats - means))
            self._features.append((feature, knots, means))
        self._ids = np.zeros(0, np.int64) if classes is None else np.unique(classes)
        if classes is not None and len(self._ids) > 1:
            parts.append((classes[:, None] == self._ids).astype(np.float64))
        self.matrix = np.hstack([np.zeros((len(next(iter(columns.values()))), 0)), *parts])
        number = sum(len(knots) for _, knots, _ in self._features)
        self.ridge = np.full(self.matrix.shape[1], _CLASS_RIDGE)
        self.ridge[:number] = _RIDGE

    def model(self, link: Literal["identity", "logistic"], intercept: float, weights: Floats) -> Additive:
        """What the weights of the columns mean."""
        terms, first = [], 0
        for feature, knots, means in self._features:
            values = weights[first : first + len(knots)]
            values = values - float(values @ means)
            first += len(knots)
            terms.append(Term(feature=feature, knots=_digits(knots), values=_digits(values)))
        rest = weights[first:]
        offsets = dict(zip(self._ids.tolist(), _digits(rest), strict=True)) if len(rest) else {}
        return Additive(link=link, intercept=_digits([intercept])[0], terms=tuple(terms), offsets=offsets)


def _digits(values: Sequence[float] | Floats) -> tuple[float, ...]:
    """Numbers with as many digits as a file of them needs."""
    return tuple(float(f"{value:.9g}") for value in values)
