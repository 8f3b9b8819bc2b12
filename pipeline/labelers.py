"""What labels images: a small protocol, what may be offered beyond it, and the table of those with a short name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from pipeline.config import LabelerConfig
from pipeline.errors import NotFoundError, StoreError, UserError
from pipeline.records import Category, Instances, Pixels
from pipeline.store import Store, local_path, scheme

#: Of a labeler that does not say what is best.
USUAL_BATCH_SIZE = 8

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


class Prepared(Protocol):
    """An image as `StagedLabeler.prepare` leaves it."""

    @property
    def like(self) -> Hashable:
        """Equal for images that may go through the model together."""
        ...

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        ...


class StagedLabeler(Labeler, Protocol):
    """A labeler in three steps, so that a worker prepares and encodes while the model is at other images.

    `label` gives the same as the three one after another.
    """

    def prepare(self, image: Pixels, size: tuple[int, int] | None = None) -> Prepared:
        """An image as the model takes it. Called in several threads at once.

        Args:
            image: as it was decoded.
            size: its own height and width, where it was decoded at a part of them (`labeler.scaled_decoding`).
        """
        ...

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width that `prepare` resizes an image to."""
        ...

    def find(self, batch: Sequence[Any]) -> Any:
        """What the model makes of prepared images that are alike. Called in one thread at a time."""
        ...

    def encode(self, found: Any) -> list[Instances]:
        """The instances of each image of the batch, in order. Called in another thread than `find`."""
        ...


def staged(labeler: Labeler) -> StagedLabeler:
    """The labeler in steps; where it knows only `label`, that is its model, and there is nothing to do around it.

    A class that derives from one with steps, and has a `label` of its own, means that to be called.
    """
    for kind in type(labeler).__mro__:
        if "find" in vars(kind):
            return cast(StagedLabeler, labeler)
        if "label" in vars(kind):
            break
    return _AtOnce(labeler)


def name_of(labeler: StagedLabeler) -> str:
    """What the user calls it."""
    return type(getattr(labeler, "whole", labeler)).__name__


def batch_size(labeler: StagedLabeler, config: LabelerConfig) -> int:
    """How many images go through the model together; for `auto`, what the labeler found best, once, on this machine."""
    if config.batch_size != "auto":
        return config.batch_size
    best = getattr(getattr(labeler, "whole", labeler), "best_batch_size", None)
    return USUAL_BATCH_SIZE if best is None else int(best())


@dataclass(frozen=True, slots=True)
class _Whole:
    """An image as it is. All are alike."""

    pixels: Pixels
    like: None = None

    @property
    def nbytes(self) -> int:
        return self.pixels.nbytes


class _AtOnce:
    """The steps of a labeler that has only one."""

    def __init__(self, labeler: Labeler) -> None:
        self.whole = labeler
        self.fingerprint, self.categories, self.quality = labeler.fingerprint, labeler.categories, labeler.quality
        self.label = labeler.label

    def prepare(self, image: Pixels, size: tuple[int, int] | None = None) -> _Whole:
        assert size is None or size == image.shape[:2], "a labeler without steps sees images as they are"
        return _Whole(image)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def find(self, batch: Sequence[_Whole]) -> list[Instances]:
        return self.whole.label([image.pixels for image in batch])

    def encode(self, found: list[Instances]) -> list[Instances]:
        return found


def wanted_size(labeler: Labeler, config: LabelerConfig) -> Callable[[int, int], tuple[int, int]] | None:
    """What images may be reduced to while they are decoded; None: they may not.

    Raises:
        UserError: labeler.scaled_decoding is set for a labeler that sees images as they are.
    """
    if not config.scaled_decoding:
        return None
    steps = staged(labeler)
    if steps is not labeler:
        raise UserError(
            f"labeler.scaled_decoding is true, but {name_of(steps)} takes images as they are; accepted is false"
        )
    return steps.input_size


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
    if config.quality is not None:
        _check_there("labeler.quality", config.quality, store)


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
