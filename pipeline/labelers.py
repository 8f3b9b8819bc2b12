"""What labels images: a small protocol, and the table of those that go by a short name."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Protocol

from pipeline.config import LabelerConfig
from pipeline.errors import UserError
from pipeline.records import Category, Instances, Pixels
from pipeline.store import Store

LABELERS = {"patchdct": "pipeline.patchdct_labeler:PatchDCTLabeler"}


class Labeler(Protocol):
    """Anything with these. A class is constructed as `Class(config, store)` in the process that uses it.

    fingerprint: changes whenever a label could change (weights, settings, code). categories: the meaning of the
    category ids. quality: the names of the quality columns of its instances.
    """

    fingerprint: str
    categories: tuple[Category, ...]
    quality: tuple[str, ...]

    def label(self, images: Sequence[Pixels]) -> list[Instances]:
        """The instances of each image, in order; what is found in one image must not depend on the others."""
        ...


def build(config: LabelerConfig, store: Store) -> Labeler:
    """Construct the labeler that `labeler.name` names.

    Raises:
        UserError: no such labeler, or it refuses its config or weights.
    """
    target = LABELERS.get(config.name, config.name)
    module, colon, name = target.partition(":")
    if not colon or not module or not name:
        raise UserError(f"labeler.name is {config.name!r}; accepted are {', '.join(LABELERS)} or module:Class")
    try:
        made = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"labeler.name is {config.name!r}, which cannot be imported: {error}") from error
    labeler: Labeler = made(config, store)
    return labeler
