"""`python hf.py FOLDER OUT`: what `datasets.load_dataset` gives."""

import sys

from datasets import load_dataset
from lines import instance, write
from pycocotools import mask as mask_api


def images(folder):
    dataset = load_dataset(folder, split="train")
    features = dataset.features
    label = features["objects"].feature["category"]
    for row in dataset:
        if "image" in features:
            assert row["image"].size == (row["width"], row["height"])
        found = []
        for one in row["objects"]:
            mask = mask_api.decode({"size": [row["height"], row["width"]], "counts": one["counts"]})
            assert mask.sum() == one["area"]
            more = {name: one[name] for name in sys.argv[2:-1]}
            found.append(instance(label.int2str(one["category"]), mask, one["score"], **more))
        yield row["key"], found


write(images(sys.argv[1]))
