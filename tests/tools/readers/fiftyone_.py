"""`python fiftyone_.py FOLDER OUT`: what FiftyOne makes of a folder, after a turn through its database."""

import sys

import fiftyone
import numpy as np
from lines import instance, write


def images(folder):
    dataset = fiftyone.Dataset.from_dir(dataset_dir=folder, dataset_type=fiftyone.types.FiftyOneDataset)
    assert dataset.info["run_id"]
    assert dataset.default_classes
    dataset.add_dynamic_sample_fields()
    for sample in dataset:
        size = sample.metadata.width, sample.metadata.height
        found = []
        for one in sample.predictions.detections:
            mask = np.zeros(size[::-1], bool)
            left, top = (round(place * side) for place, side in zip(one.bounding_box, size, strict=False))
            mask[top : top + one.mask.shape[0], left : left + one.mask.shape[1]] = one.mask
            drawn = one.to_segmentation(frame_size=size).mask
            assert (drawn.astype(bool) == mask).all(), "FiftyOne draws the mask elsewhere"
            more = {name: one[name] for name in one.field_names if name in sys.argv[2:-1]}
            found.append(instance(one.label, mask, one.confidence, **more))
        yield sample.filepath, found


write(images(sys.argv[1]))
