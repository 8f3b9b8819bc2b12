"""`python labelstudio.py FOLDER OUT`: what Label Studio's SDK checks, and what its converter decodes."""

import json
import sys
from pathlib import Path

import numpy as np
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface
from lines import instance, write
from pycocotools import mask as mask_api


def images(folder):
    interface = LabelInterface((folder / "label_config.xml").read_text())
    interface.validate()
    for path in sorted(folder.glob("tasks-*.json")):
        for task in json.loads(path.read_text()):
            assert interface.validate_task({"data": task["data"]})
            for prediction in task["predictions"]:
                assert interface.validate_prediction(prediction, return_errors=True) == []
            yield task["data"]["key"], instances(task["predictions"][0]["result"])


def instances(regions):
    by_instance = {}
    for one in regions:
        size = one["original_height"], one["original_width"]
        if one["type"] == "brushlabels":
            pixels = decode_rle(one["value"]["rle"]).reshape(*size, 4)
            assert (pixels == pixels[..., :1]).all()
            assert set(np.unique(pixels)) <= {0, 255}
            mask = pixels[..., 3] > 0
        else:
            points = np.array(one["value"]["points"]) * (size[1] / 100, size[0] / 100)
            mask = mask_api.decode(mask_api.frPyObjects([points.reshape(-1).tolist()], *size)).any(axis=2)
        name = "-".join(one["id"].split("-")[:2])
        by_instance.setdefault(name, (one["value"][one["type"]][0], one["score"], []))[2].append(mask)
    return [instance(label, np.any(masks, axis=0), score) for label, score, masks in by_instance.values()]


write(images(Path(sys.argv[1])))
