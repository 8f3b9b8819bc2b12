"""`python cvat.py FOLDER OUT`: what datumaro reads from CVAT's XML."""

import sys

from datumaro.components.annotation import AnnotationType
from datumaro.components.dataset import Dataset
from lines import instance, write
from pycocotools import mask as mask_api


def images(folder):
    dataset = Dataset.import_from(folder, "cvat")
    labels = dataset.categories()[AnnotationType.label]
    for item in dataset:
        height, width = item.media.size
        groups, found = {}, []
        for one in item.annotations:
            label, score = labels[one.label].name, one.attributes["score"]
            if one.type == AnnotationType.mask:
                found.append(instance(label, one.image, float(score)))
            else:  # by COCO's rasteriser, as CVAT does where it exports masks
                flat = mask_api.frPyObjects([list(one.points)], height, width)
                _, _, pieces = groups.setdefault(one.group, (label, float(score), []))
                pieces.extend(flat)
        for label, score, pieces in groups.values():
            found.append(instance(label, mask_api.decode(mask_api.merge(pieces)), score))
        yield item.media.path, found


write(images(sys.argv[1]))
