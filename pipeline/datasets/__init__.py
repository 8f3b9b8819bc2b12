"""Images with masks, for training and evaluation, from every form that they come in -> COCO form.

To add a form: a function as those in FORMS, and its name in `config.DatasetName`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import calibration, taxonomy
from pipeline.config import DatasetConfig, DatasetName, TruthConfig
from pipeline.datasets import cityscapes, coco, labelled, lvis
from pipeline.datasets.dataset import Dataset
from pipeline.errors import UserError
from pipeline.store import Store
from pipeline.view import View

__all__ = ["FORMS", "Dataset", "merge", "read"]

#: Called with the annotations, the images' root or None, and as keywords `store`, `key`, `strict`; see `read`.
FORMS: Mapping[DatasetName, Callable[..., Dataset]] = {
    "coco": coco.read,
    "lvis_v0.5": lvis.read,
    "cityscapes": cityscapes.read,
}


def read(config: DatasetConfig | TruthConfig, store: Store, *, key: str, cache: Path | None = None) -> Dataset:
    """Read a data set, and find its images.

    Args:
        config: which one. Of a truth, every annotation must have a mask; of other data sets, those without are left
            out. Without `images`, no image is looked for.
        store: where to read.
        key: the config's own key, such as data.train[1], with which sentences begin.
        cache: the folder in which images of a run that lie in archives are unpacked, once; by default one in the
            system's temporary folder.

    Raises:
        UserError: it cannot be read, it is not what its form says, or none of its images is there.
        StoreError: storage refused or did not answer.
    """
    if isinstance(config, DatasetConfig) and config.run is not None:
        return labelled.read(config.run, _view(config, key, store), store=store, key=key, cache=cache)
    assert config.annotations is not None, "DatasetConfig sees to it"
    strict = isinstance(config, TruthConfig)
    return FORMS[config.name](config.annotations, config.images, store=store, key=key, strict=strict)


def _view(config: DatasetConfig, key: str, store: Store) -> View:
    """Which masks of a run count, and what their classes are called."""
    thresholds, classes = config.thresholds, config.taxonomy
    return View(
        min_score=config.score_threshold,
        calibration=None if thresholds is None else calibration.read(thresholds, store, key=f"{key}.thresholds"),
        taxonomy=None if classes is None else taxonomy.read(classes, store, key=f"{key}.taxonomy"),
    )


def merge(datasets: Sequence[Dataset]) -> Dataset:
    """Several data sets as one. A single one stays as it is; of several, images and annotations are numbered anew.

    Raises:
        UserError: they have different categories.
    """
    first, *others = datasets
    if not others:
        return first
    categories = _names(first)
    for other in others:
        if (theirs := _names(other)) != categories:
            raise UserError(
                f"{first.name} and {other.name} cannot be used together, as their categories differ: "
                f"{_difference(categories, theirs)}"
            )
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    uris: dict[int, str] = {}
    for one in datasets:
        new_ids = {image["id"]: number for number, image in enumerate(one.coco["images"], len(images) + 1)}
        images += ({**image, "id": new_ids[image["id"]]} for image in one.coco["images"])
        annotations += (
            {**annotation, "id": number, "image_id": new_ids[annotation["image_id"]]}
            for number, annotation in enumerate(one.coco["annotations"], len(annotations) + 1)
        )
        uris |= {new_ids[id_]: uri for id_, uri in one.uris.items()}
    return Dataset(
        name=" + ".join(one.name for one in datasets),
        coco={"images": images, "annotations": annotations, "categories": first.coco["categories"]},
        uris=uris,
        missing=tuple(name for one in datasets for name in one.missing),
    )


def _names(dataset: Dataset) -> dict[int, str]:
    return {category["id"]: category["name"] for category in dataset.coco["categories"]}


def _difference(first: Mapping[int, str], other: Mapping[int, str]) -> str:
    """The category of the lowest id in which two data sets differ."""
    id_ = min(id_ for id_ in {*first, *other} if first.get(id_) != other.get(id_))
    ours, theirs = (f"is {names[id_]!r}" if id_ in names else "is not there" for names in (first, other))
    return f"the id {id_} {ours} in the first and {theirs} in the second"
