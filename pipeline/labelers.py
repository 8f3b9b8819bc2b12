"""What labels images: a small protocol, and the table of those that go by a short name."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pipeline.config import LabelerConfig
from pipeline.errors import NotFoundError, StoreError, UserError
from pipeline.records import Category, Instances, Pixels
from pipeline.store import Store, local_path, scheme

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


def check(config: LabelerConfig, store: Store) -> None:
    """Refuse what can be told before a worker is started for it: names and files that are not there.

    Raises:
        UserError: no such labeler, or no such file.
    """
    _target(config.name)
    if config.name not in LABELERS:  # what another labeler makes of these keys, it alone knows
        return
    if config.weights is None:
        raise UserError("labeler.weights is missing; give the path or URI of a checkpoint")
    _check_there("labeler.weights", config.weights, store)
    if config.config is not None:
        _check_there("labeler.config", config.config, store)
    if isinstance(config.categories, str):
        _check_there("labeler.categories", config.categories, store)


def build(config: LabelerConfig, store: Store) -> Labeler:
    """Construct the labeler that `labeler.name` names.

    Raises:
        UserError: no such labeler, or it refuses its config or weights.
    """
    module, name = _target(config.name)
    try:
        made = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"labeler.name is {config.name!r}, which cannot be imported: {error}") from error
    if not isinstance(made, type):
        raise UserError(f"labeler.name is {config.name!r}, which is no class")
    labeler: Labeler = made(config, store)
    return labeler


def _target(name: str) -> tuple[str, str]:
    """The module and the class that a labeler's name stands for."""
    module, _, made = LABELERS.get(name, name).partition(":")
    if not made or not module or module.startswith("."):
        raise UserError(f"labeler.name is {name!r}; accepted are {', '.join(LABELERS)} and module:Class")
    return module, made


def _check_there(key: str, uri: str, store: Store) -> None:
    """Refuse a file that is not there; but a folder that this machine lacks may be one that the workers' have."""
    if scheme(uri) in ("", "file") and not Path(local_path(uri)).parent.is_dir():
        return
    try:
        store.stat(uri)
    except (NotFoundError, UserError) as error:
        raise UserError(f"{key}: {error}") from error
    except StoreError:  # the workers may be allowed what this machine is not
        return
