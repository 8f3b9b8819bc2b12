"""LVIS v0.5, of which the categories are kept that COCO has, under COCO's ids and names.

The categories are those of COCO, all 80, so that the data fit COCO's models and can be used together with COCO's; LVIS
v0.5 has none of the objects of two of them (hot dog, oven).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.datasets import documents
from pipeline.datasets.checking import check_truth
from pipeline.datasets.dataset import Dataset, found
from pipeline.errors import UserError
from pipeline.store import Store, redact

#: COCO's id and name, and the WordNet synset that LVIS has for it, after data/coco_to_synset.json of the LVIS API.
# fmt: off
CATEGORIES: tuple[tuple[int, str, str], ...] = (
    (1, "person", "person.n.01"), (2, "bicycle", "bicycle.n.01"), (3, "car", "car.n.01"),
    (4, "motorcycle", "motorcycle.n.01"), (5, "airplane", "airplane.n.01"), (6, "bus", "bus.n.01"),
    (7, "train", "train.n.01"), (8, "truck", "truck.n.01"), (9, "boat", "boat.n.01"),
    (10, "traffic light", "traffic_light.n.01"), (11, "fire hydrant", "fireplug.n.01"),
    (13, "stop sign", "stop_sign.n.01"), (14, "parking meter", "parking_meter.n.01"), (15, "bench", "bench.n.01"),
    (16, "bird", "bird.n.01"), (17, "cat", "cat.n.01"), (18, "dog", "dog.n.01"), (19, "horse", "horse.n.01"),
    (20, "sheep", "sheep.n.01"), (21, "cow", "beef.n.01"), (22, "elephant", "elephant.n.01"),
    (23, "bear", "bear.n.01"), (24, "zebra", "zebra.n.01"), (25, "giraffe", "giraffe.n.01"),
    (27, "backpack", "backpack.n.01"), (28, "umbrella", "umbrella.n.01"), (31, "handbag", "bag.n.04"),
    (32, "tie", "necktie.n.01"), (33, "suitcase", "bag.n.06"), (34, "frisbee", "frisbee.n.01"),
    (35, "skis", "ski.n.01"), (36, "snowboard", "snowboard.n.01"), (37, "sports ball", "ball.n.06"),
    (38, "kite", "kite.n.03"), (39, "baseball bat", "baseball_bat.n.01"),
    (40, "baseball glove", "baseball_glove.n.01"), (41, "skateboard", "skateboard.n.01"),
    (42, "surfboard", "surfboard.n.01"), (43, "tennis racket", "tennis_racket.n.01"), (44, "bottle", "bottle.n.01"),
    (46, "wine glass", "wineglass.n.01"), (47, "cup", "cup.n.01"), (48, "fork", "fork.n.01"),
    (49, "knife", "knife.n.01"), (50, "spoon", "spoon.n.01"), (51, "bowl", "bowl.n.03"),
    (52, "banana", "banana.n.02"), (53, "apple", "apple.n.01"), (54, "sandwich", "sandwich.n.01"),
    (55, "orange", "orange.n.01"), (56, "broccoli", "broccoli.n.01"), (57, "carrot", "carrot.n.01"),
    (58, "hot dog", "frank.n.02"), (59, "pizza", "pizza.n.01"), (60, "donut", "doughnut.n.02"),
    (61, "cake", "cake.n.03"), (62, "chair", "chair.n.01"), (63, "couch", "sofa.n.01"),
    (64, "potted plant", "pot.n.04"), (65, "bed", "bed.n.01"), (67, "dining table", "dining_table.n.01"),
    (70, "toilet", "toilet.n.02"), (72, "tv", "television_receiver.n.01"), (73, "laptop", "laptop.n.01"),
    (74, "mouse", "mouse.n.04"), (75, "remote", "remote_control.n.01"), (76, "keyboard", "computer_keyboard.n.01"),
    (77, "cell phone", "cellular_telephone.n.01"), (78, "microwave", "microwave.n.02"), (79, "oven", "oven.n.01"),
    (80, "toaster", "toaster.n.02"), (81, "sink", "sink.n.01"), (82, "refrigerator", "electric_refrigerator.n.01"),
    (84, "book", "book.n.01"), (85, "clock", "clock.n.01"), (86, "vase", "vase.n.01"),
    (87, "scissors", "scissors.n.01"), (88, "teddy bear", "teddy.n.01"), (89, "hair drier", "hand_blower.n.01"),
    (90, "toothbrush", "toothbrush.n.01"),
)
# fmt: on
_BY_SYNSET = {synset: id_ for id_, _, synset in CATEGORIES}
_BY_NAME = {(id_, name): id_ for id_, name, _ in CATEGORIES}
_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")


def read(annotations: str, images: str | None, *, store: Store, key: str, strict: bool) -> Dataset:
    """Read an LVIS v0.5 json, or one whose categories are COCO's already; see `datasets.read`.

    Images keep which categories are known to be absent and which are not marked throughout, without which LVIS' metric
    cannot be computed. Their files may have COCO's names of 2014 or, as in `coco_url`, those of 2017, with or without
    the folder of the split.
    """
    document = documents.parsed(annotations, store=store, key=f"{key}.annotations", what="an LVIS v0.5 json")
    where = f"{key}.annotations: {redact(annotations)}"
    if isinstance(document, dict) and isinstance(document.get("images"), list):
        document["images"] = [_named(image) for image in document["images"]]
    check_truth(document, where, strict=strict)
    ids = _to_coco(document["categories"])
    if not ids:
        raise UserError(f"{where} has none of COCO's 80 categories; give an LVIS v0.5 json")
    lists = {image["id"]: _lists(image, ids, where) for image in document["images"]}
    names = {image["id"]: tuple(dict.fromkeys(_file_names(image))) for image in document["images"]}
    document["annotations"] = [
        {**annotation, "category_id": ids[annotation["category_id"]]}
        for annotation in document["annotations"]
        if annotation["category_id"] in ids
    ]
    coco = documents.normal(document, where)
    coco["categories"] = [{"id": id_, "name": name} for id_, name, _ in CATEGORIES]
    coco["images"] = [{**image, **lists[image["id"]]} for image in coco["images"]]
    return found(coco, names, images, store=store, key=key, name=redact(annotations))


def _named(image: Any) -> Any:
    """An image record with a file_name, which later versions of LVIS leave to coco_url."""
    if isinstance(image, dict) and "file_name" not in image and isinstance(image.get("coco_url"), str):
        return {**image, "file_name": image["coco_url"].rpartition("/")[2]}
    return image


def _to_coco(categories: list[dict[str, Any]]) -> dict[int, int]:
    """The ids of a json's categories -> those of COCO."""
    pairs = (
        (one["id"], _BY_SYNSET.get(one["synset"]) if "synset" in one else _BY_NAME.get((one["id"], one["name"])))
        for one in categories
    )
    return {id_: coco_id for id_, coco_id in pairs if coco_id is not None}


def _lists(image: Mapping[str, Any], ids: Mapping[int, int], where: str) -> dict[str, list[int]]:
    """The lists of categories of an image that it has, as far as these are COCO's."""
    lists = {}
    for key in _KEYS:
        if key not in image:
            continue
        values = image[key]
        if not isinstance(values, list) or any(type(value) is not int for value in values):
            raise UserError(f"{where}: {key} of the image {image['id']} must be a list of category ids")
        lists[key] = sorted({ids[value] for value in values if value in ids})
    return lists


def _file_names(image: Mapping[str, Any]) -> Iterator[str]:
    """What the file of an image may be called below the root, the likeliest first."""
    url = image.get("coco_url")
    parts = url.split("/") if isinstance(url, str) else []
    if len(parts) >= 2:
        yield "/".join(parts[-2:])
        yield parts[-1]
    yield image["file_name"]
    _, _, number = image["file_name"].rpartition("_")
    if not parts and number[:12].isdecimal():
        yield number
