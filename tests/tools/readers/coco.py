"""`python coco.py FILE OUT`: what pycocotools reads, and whether FiftyOne reads as many masks from the same file."""

import sys

import fiftyone
from lines import instance, write
from pycocotools.coco import COCO


def images(path):
    coco = COCO(path)
    names = {one["id"]: one["name"] for one in coco.loadCats(coco.getCatIds())}
    dataset = fiftyone.Dataset.from_dir(
        dataset_type=fiftyone.types.COCODetectionDataset,
        data_path={one["file_name"]: f"/images/{one['file_name']}" for one in coco.dataset["images"]},
        labels_path=path,
        label_field="labels",
        label_types="segmentations",
        extra_attrs=True,
    )
    found = [one for sample in dataset.values("labels.detections") for one in sample or []]
    assert len(found) == len(coco.anns), f"FiftyOne reads {len(found)} of {len(coco.anns)} masks"
    assert all(one.mask is not None for one in found)
    for image in coco.loadImgs(coco.getImgIds()):
        annotations = coco.imgToAnns[image["id"]]
        found = [instance(names[one["category_id"]], coco.annToMask(one), one["score"]) for one in annotations]
        yield image["file_name"], found


write(images(sys.argv[1]))
