"""`python yolo.py FOLDER SIZE RATIO OUT`: the masks that ultralytics trains on, at a size and a ratio."""

import sys

from lines import instance, write
from ultralytics.cfg import get_cfg
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.utils import DEFAULT_CFG


def images(folder, size, ratio):
    data = check_det_dataset(f"{folder}/data.yaml")
    hyp = get_cfg(DEFAULT_CFG)
    hyp.mask_ratio, hyp.overlap_mask = ratio, False
    dataset = YOLODataset(
        img_path=data["train"], data=data, task="segment", augment=False, imgsz=size, rect=False, hyp=hyp, cache=False
    )
    for index in range(len(dataset)):
        found = dataset[index]
        height, width = (round(side * size / max(found["ori_shape"])) // ratio for side in found["ori_shape"])
        masks = found["masks"].numpy()
        top, left = (masks.shape[1] - height) // 2, (masks.shape[2] - width) // 2  # the image lies in a square
        masks = masks[:, top : top + height, left : left + width]
        labels = [data["names"][int(index)] for index in found["cls"].flatten()]
        yield found["im_file"], [instance(label, mask) for label, mask in zip(labels, masks, strict=True)]


write(images(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
