"""Precision over recall, and the score from which on predictions are best kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from patchdct.evaluate.matching import RECALLS, Floats
from patchdct.evaluate.tally import Curves, Ranked, Tally

#: The curves of a section by name: the IoU thresholds over which they are the mean.
_CURVES = {"precision": slice(None), "precision50": slice(0, 1), "precision75": slice(5, 6)}


def section(categories: Mapping[int, str], curves: Curves, tally: Tally) -> dict[str, Any]:
    """The section `pr` of the report.

    Args:
        categories: The names by id, ascending.
        curves: The curves of their masks.
        tally: What these are from.

    Returns:
        `recall`, the levels [101]; `precision` (mean over IoU 0.5 to 0.95), `precision50` and `precision75` at these
        levels, mean over the categories that the truth has, None where it has none; and `per_class`, by category name:
        the same of one category; `score` [101], the least score to keep for that recall at IoU 0.5, None where it is
        not reached; and `best_f1`, see there. A category that the truth does not have is None.
    """
    precision = curves.precision[..., 0]
    measured = [k for k in range(len(categories)) if precision[0, 0, k] >= 0]
    ids = list(categories)
    per_class: dict[str, Any] = dict.fromkeys(categories.values())
    for k in measured:
        # Where nothing was found COCOeval has zeros, which as a score to keep from would mean everything.
        reached = precision[0, :, k] > 0
        scores = curves.scores[0, :, k, 0]
        per_class[categories[ids[k]]] = {
            **_named(precision[..., [k]]),
            "score": [score if there else None for score, there in zip(scores.tolist(), reached, strict=True)],
            "best_f1": best_f1(tally.ranked_masks(ids[k])),
        }
    return {"recall": RECALLS.tolist(), **_named(precision[..., measured]), "per_class": per_class}


def best_f1(ranked: Ranked) -> dict[str, float | None]:
    """The highest F1 of a category that a score threshold reaches, counting what has at least that score.

    Returns:
        `f1`, the `score` to keep from (None where nothing was found), and the `precision` and `recall` there. Of equal
        F1, the highest score.
    """
    right, wrong = np.cumsum(ranked.right), np.cumsum(ranked.wrong)
    # A threshold keeps all predictions of one score, or none.
    ends = np.flatnonzero(np.append(ranked.scores[1:] != ranked.scores[:-1], True)[: len(ranked.scores)])
    f1 = 2 * right[ends] / (right[ends] + wrong[ends] + max(ranked.wanted, 1))
    if not f1.any():
        return {"f1": 0.0, "score": None, "precision": 0.0, "recall": 0.0}
    end = ends[np.argmax(f1)]
    return {
        "f1": float(f1.max()),
        "score": float(ranked.scores[end]),
        "precision": float(right[end] / (right[end] + wrong[end])),
        "recall": float(right[end] / ranked.wanted),
    }


def _named(precision: Floats) -> dict[str, list[float] | None]:
    """The means of precision [T, R, K] over IoU thresholds and categories, by name."""
    if not precision.shape[-1]:
        return dict.fromkeys(_CURVES)
    return {name: precision[thresholds].mean(axis=(0, 2)).tolist() for name, thresholds in _CURVES.items()}
