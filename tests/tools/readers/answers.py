"""`python answers.py FOLDER TOOL OUT`: what a tool itself gives back of an export of ours, with masks of its own."""

import json
import sys
from pathlib import Path

import numpy as np


def label_studio(folder):
    """All predictions submitted, the masks coded anew by Label Studio's SDK: with lengths and literals of its own."""
    from label_studio_sdk.converter.brush import decode_rle, mask2rle

    tasks = []
    for path in sorted(folder.glob("tasks-*.json")):
        for task in json.loads(path.read_text()):
            result = task["predictions"][0]["result"]
            for one in result:
                size = one["original_height"], one["original_width"]
                mask = decode_rle(one["value"]["rle"]).reshape(*size, 4)[..., 3]
                one["value"]["rle"] = mask2rle(np.ascontiguousarray(mask))
            tasks.append({"id": len(tasks), "data": task["data"], "annotations": [{"result": result}]})
    return json.dumps(tasks)


def cvat(folder):
    """What datumaro writes of what it has read."""
    from datumaro.components.dataset import Dataset

    out = folder.parent / "written by datumaro"
    Dataset.import_from(str(folder), "cvat").export(str(out), "cvat", save_media=False)
    (path,) = out.glob("*.xml")
    return path.read_text()


folder, tool, out = sys.argv[1:]
Path(out).write_text({"labelstudio": label_studio, "cvat": cvat}[tool](Path(folder)))
