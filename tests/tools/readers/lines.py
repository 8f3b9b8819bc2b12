"""What each reader here writes: a line of JSON an image, with the masks as the tool has them."""

import json
import sys
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_api


def instance(label, mask, score=None, **more):
    """An instance with a mask of the image's size."""
    counts = mask_api.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    return {"label": label, "counts": counts, "score": score, **more}


def write(images):
    """Write (name, instances) to the file that the last argument of the command names."""
    with Path(sys.argv[-1]).open("w") as file:
        for name, instances in images:
            file.write(json.dumps({"image": name, "instances": instances}) + "\n")
