"""How the labels of a run are looked at: which of its masks count, and what their classes are called.

A view changes nothing that is stored. Whatever reads a run for people or for other tools reads it through one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.records import Category, ImageLabels, Instances
from pipeline.taxonomy import Taxonomy


class Judge(Protocol):
    """What has been fitted to a labelled set: see `calibration.Calibration`."""

    def apply(self, instances: Instances) -> Instances:
        """The instances with further or better quality columns; their scores stay."""
        ...

    def keeps(self, instances: Instances) -> npt.NDArray[np.bool_]:
        """Which of them are good enough, bool [N]; those that `apply` has seen."""
        ...

    def check(self, categories: Sequence[Category], where: str) -> None:
        """Refuse labels of other classes, with a UserError whose sentence begins with `where`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Thresholds first, by the classes that the model knows, then the classes of the user.

    min_score: masks that score less are left out. calibration: those that it does not keep are, too. taxonomy: other
    classes. What a person has corrected is left out for neither.
    """

    min_score: float = 0.0
    calibration: Judge | None = None
    taxonomy: Taxonomy | None = None

    def __str__(self) -> str:
        """What it does, for people; empty where it shows all as it is.

        >>> str(View(min_score=0.5)), str(View())
        ('score 0.5 and up', '')
        """
        parts = {
            f"score {self.min_score:g} and up": self.min_score > 0,
            "thresholds by class": self.calibration is not None,
            "classes by a taxonomy": self.taxonomy is not None,
        }
        return ", ".join(text for text, holds in parts.items() if holds)

    def categories(self, categories: Sequence[Category]) -> tuple[Category, ...]:
        """The classes of the view, given those of the run.

        Raises:
            UserError: the taxonomy speaks of a class that the run does not have, or the calibration is for others.
        """
        if self.calibration is not None:
            self.calibration.check(categories, "--thresholds")
        return tuple(categories) if self.taxonomy is None else self.taxonomy.categories(categories)

    def row(self, row: ImageLabels, categories: Sequence[Category]) -> ImageLabels:
        """A row as the view shows it; one that has lost all its masks is empty. `categories` are those of the run."""
        instances = self.instances(row.instances, categories, judged=row.corrected == 0)
        status = "empty" if row.status == "labelled" and not len(instances) else row.status
        return replace(row, instances=instances, status=status)

    def instances(self, instances: Instances, categories: Sequence[Category], *, judged: bool = True) -> Instances:
        """Instances as the view shows them; `judged`: whether their scores count."""
        if self.calibration is not None:
            instances = self.calibration.apply(instances)
        if judged:
            instances = instances.above(self.min_score)
            if self.calibration is not None:
                instances = instances.where(self.calibration.keeps(instances))
        return instances if self.taxonomy is None else self.taxonomy.instances(instances, categories)


#: Labels as they are.
PLAIN = View()
