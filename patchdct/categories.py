"""The classes of the data sets that published checkpoints are trained on, in the order of the model's outputs."""

from __future__ import annotations

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

COCO: tuple[tuple[int, str], ...] = tuple((c["id"], c["name"]) for c in COCO_CATEGORIES if c["isthing"])

#: With the label ids of cityscapesscripts.
CITYSCAPES: tuple[tuple[int, str], ...] = (
    (24, "person"),
    (25, "rider"),
    (26, "car"),
    (27, "truck"),
    (28, "bus"),
    (31, "train"),
    (32, "motorcycle"),
    (33, "bicycle"),
)


def known(count: int) -> tuple[tuple[int, str], ...] | None:
    """(id, name) of the data set with so many classes: COCO for 80, Cityscapes for 8, else None."""
    return {len(COCO): COCO, len(CITYSCAPES): CITYSCAPES}.get(count)
