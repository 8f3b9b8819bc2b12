"""The upper bound: what encoding and decoding alone cost, and that nothing else is charged to an encoding."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import BitMasks
from pycocotools import mask as mask_api
from scipy.fft import dctn, idctn

from patchdct import scenes, upper_bound
from patchdct.errors import DataError
from patchdct.evaluate import boundary, boundary_width
from patchdct.upper_bound import DEFAULT, Dct, Encoding, Grid, PatchDct, measure, table

COCO_MINI = Path(__file__).parents[3] / "shared/data/coco-mini/annotations/instances_val.json"
ORDER = ("grid 28x28", "DCT-300", "PatchDCT 6", "grid 112x112")
PERFECT = (1, 1, pytest.approx(1), pytest.approx(1))  # AP ends a rounding below 1, as in pycocotools
CHOSEN = (Grid(28), Dct(300), PatchDct(6), Grid(112), PatchDct(64))


def blobs(count: int, side: int, seed: int = 0) -> np.ndarray:
    """Random ragged masks, uint8 [count, side, side], none of them empty."""
    noise = np.random.default_rng(seed).normal(size=(count, side, side))
    return np.stack([cv2.GaussianBlur(one, (0, 0), side / 20) > 0 for one in noise]).astype(np.uint8)


def truth_of(masks: np.ndarray, **columns: Any) -> dict[str, Any]:
    """A COCO truth with each mask, [N, H, W], in an image of its own; `columns` go to every annotation."""
    height, width = masks.shape[1:]
    ids = range(1, len(masks) + 1)
    rles = [mask_api.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": height, "width": width} for i in ids],
        "categories": [{"id": 3, "name": "blob"}],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 3, "segmentation": rle, "iscrowd": 0, **columns}
            for i, rle in zip(ids, rles, strict=True)
        ],
    }


def rectangle(x: int, y: int, w: int, h: int, *, height: int = 90, width: int = 110) -> np.ndarray:
    mask = np.zeros((1, height, width), np.uint8)
    mask[:, y : y + h, x : x + w] = 1
    return mask


def figures(report: dict[str, Any], name: str) -> tuple[float, float, float, float]:
    row = report["encodings"][name]
    return row["mask_iou"], row["boundary_iou"], row["mask"]["AP"], row["boundary"]["AP"]


def assert_in_order(report: dict[str, Any]) -> None:
    mask_ious, boundary_ious, *aps = zip(*(figures(report, name) for name in ORDER), strict=True)
    for column in (mask_ious, boundary_ious):
        assert list(column) == sorted(set(column)), column
    for column in aps:  # in steps: the finest encodings may both be perfect
        assert list(column) == sorted(column), column
        assert column[0] < column[1] < column[3], column


def test_finer_encodings_lose_less_of_drawn_shapes(tmp_path):
    """An encoding that is coded or decoded wrongly would lose its place in the order that the papers report."""
    truth = json.loads(scenes.write_scenes(tmp_path, images=4, seed=3, size=256).read_text())
    report = measure(truth, encodings=CHOSEN)
    assert report["images"] == 4
    assert report["instances"] == len(truth["annotations"])
    assert_in_order(report)
    assert figures(report, "PatchDCT 64") == figures(report, "grid 112x112")


def test_finer_encodings_lose_less_of_real_masks():
    """As on drawn shapes, with holes, parts and occlusions; crowds, of which these have some, are not encoded."""
    if not COCO_MINI.exists():
        pytest.skip("shared/data/coco-mini is not at hand")
    truth = json.loads(COCO_MINI.read_text())
    image_ids = sorted(image["id"] for image in truth["images"])[::4]
    rows = [row for row in truth["annotations"] if row["image_id"] in image_ids]
    report = measure(truth, encodings=CHOSEN, image_ids=image_ids)
    assert report["images"] == 20
    assert report["instances"] == len([row for row in rows if not row["iscrowd"]]) < len(rows)
    assert_in_order(report)
    assert figures(report, "PatchDCT 64") == figures(report, "grid 112x112")


@pytest.mark.parametrize("side", [8, 56, 83, 200])
def test_all_coefficients_give_the_grid_itself(side):
    """Float noise of decoding would decide pixels that lie midway between a 0 and a 1: in boxes of 56 pixels, all."""
    crops = torch.from_numpy(blobs(5, 112, seed=side)).bool()
    assert torch.equal(PatchDct(64).code(crops).values, Grid(112).code(crops).values)
    report = measure(truth_of(blobs(5, side)), encodings=[Grid(112), PatchDct(64)])
    assert figures(report, "PatchDCT 64") == figures(report, "grid 112x112")


@pytest.mark.parametrize(
    "box",
    [(0, 0, 1, 1), (109, 89, 1, 1), (50, 40, 1, 1), (0, 0, 60, 60), (50, 30, 60, 60), (20, 0, 1, 60), (3, 7, 60, 2)],
)
def test_a_mask_that_fills_its_box_is_perfect(box):
    """Boxes that are half a pixel off, or cut at the image's edge, would lose rows of a mask of any simplicity."""
    report = measure(truth_of(rectangle(*box)))
    assert list(report["encodings"]) == [encoding.name for encoding in DEFAULT]
    for name in report["encodings"]:
        assert figures(report, name) == PERFECT, name


def test_corners_of_large_masks_are_lost_in_pasting():
    """What a user sees of it in the best encoding: four pixels of a large square, as the documentation says."""
    report = measure(truth_of(rectangle(10, 20, 300, 300, height=400, width=400)), encodings=[Grid(112)])
    assert figures(report, "grid 112x112")[0] == pytest.approx(1 - 4 / 300**2)
    report = measure(truth_of(rectangle(10, 20, 260, 260, height=400, width=400)), encodings=[Grid(112)])
    assert figures(report, "grid 112x112")[0] == 1


def plain_ious(mask: np.ndarray, encoding: Encoding) -> tuple[float, float]:
    """Mask and boundary IoU of one mask [H, W], cropped and pasted by detectron2 in the whole image."""
    x, y, w, h = mask_api.toBbox(mask_api.encode(np.asfortranarray(mask)))
    box = torch.tensor([[x, y, x + w, y + h]], dtype=torch.float32)
    crop = BitMasks(torch.from_numpy(mask[None])).crop_and_resize(box, encoding.grid)
    pasted = paste_masks_in_image(encoding.code(crop).values, box, mask.shape)[0].numpy().astype(np.uint8)
    edges = [boundary(one, boundary_width(*mask.shape)) for one in (mask, pasted)]
    mask_iou, boundary_iou = ((a & b).sum() / (a | b).sum() for a, b in ((mask, pasted), edges))
    return mask_iou, boundary_iou


def test_figures_are_those_of_the_plain_way():
    """Windows, portions and RLE must not change a figure: here detectron2 crops and pastes whole images, one by one."""
    masks = np.zeros((4, 120, 150), np.uint8)
    for mask, blob, (y, x) in zip(masks, blobs(4, 70), [(0, 0), (50, 80), (20, 33), (49, 10)], strict=True):
        mask[y : y + 70, x : x + 70] = blob
    expected = np.mean([plain_ious(mask, PatchDct(6)) for mask in masks], axis=0)
    report = measure(truth_of(masks), encodings=[PatchDct(6)])
    np.testing.assert_allclose(figures(report, "PatchDCT 6")[:2], expected, rtol=1e-12)
    assert expected.max() < 0.99


def test_what_is_pasted_outside_of_the_box_counts():
    """Values above 1 at an edge reach beyond a box that is large for the grid; errors there are errors as well."""
    mask = np.zeros((300, 300), np.uint8)
    mask[50:250, 50:150] = 1
    mask[50, 249] = 1  # makes the box square, and vanishes
    report = measure(truth_of(mask[None]), encodings=[Dct(6, grid=8)])
    assert figures(report, "DCT-6")[:2] == pytest.approx(plain_ious(mask, Dct(6, grid=8)), rel=1e-12)


def test_portions_change_nothing(monkeypatch):
    """The instances of a dense image are measured in portions: none may be lost, doubled or mixed up at their ends."""
    truth = truth_of(blobs(5, 40))
    for row in truth["annotations"]:
        row["image_id"] = 1
    whole = measure(truth, encodings=CHOSEN)
    monkeypatch.setattr(upper_bound, "_PIXELS", 2 * 112**2)
    assert measure(truth, encodings=CHOSEN) == whole


def test_encodings_decode_what_they_kept():
    """The lowest coefficients in zigzag order, of the mask or of each mixed patch; here by scipy, one by one."""
    crop = blobs(1, 112)[0].astype(np.float64)

    def low(values: np.ndarray, diagonals: int) -> np.ndarray:
        spectrum = dctn(values, norm="ortho")
        return idctn(np.where(np.add(*np.indices(values.shape)) < diagonals, spectrum, 0), norm="ortho")

    by_patch = crop.copy()
    for place in np.ndindex(14, 14):
        window = tuple(slice(8 * i, 8 * i + 8) for i in place)
        if 0 < by_patch[window].sum() < 64:
            by_patch[window] = low(crop[window], 3)
    masks = torch.from_numpy(crop[None]).bool()
    np.testing.assert_allclose(Dct(300).code(masks).values[0], low(crop, 24), atol=2**-15)
    np.testing.assert_allclose(PatchDct(6).code(masks).values[0], by_patch, atol=2**-15)


def test_size_of_the_code():
    """The price of an encoding: only mixed patches have coefficients, and a binary cell is a bit."""
    crops = torch.zeros(2, 112, 112, dtype=torch.bool)
    crops[0, :, 56:] = True  # along the patches
    crops[1, 4:, :] = True  # through the 14 patches of the first row
    coded = PatchDct(6).code(crops)
    assert coded.numbers.tolist() == [196, 196 + 14 * 6]
    assert coded.bits.tolist() == [2 * 196, 2 * 196 + 32 * 14 * 6]
    assert Dct(300).code(crops).bits.tolist() == [9600, 9600]
    row = measure(truth_of(blobs(2, 30)), encodings=[Grid(28)])["encodings"]["grid 28x28"]
    assert (row["numbers"], row["bytes"]) == (784, 98)


def test_a_mask_that_vanishes_is_missed():
    """A line too thin for the grid leaves no pixel: it counts as lost instead of dropping out of the means."""
    masks = np.concatenate([np.eye(60, dtype=np.uint8)[None], rectangle(5, 5, 8, 8, height=60, width=60)])
    report = measure(truth_of(masks), encodings=[Grid(4)])
    assert figures(report, "grid 4x4")[:2] == (0.5, 0.5)
    assert report["encodings"]["grid 4x4"]["mask"]["AP"] == pytest.approx(0.5, abs=0.01)


def test_annotations_without_a_pixel_are_left_out():
    """A polygon thinner than a pixel has no box to crop; it must neither stop the measurement nor cost AP."""
    truth = truth_of(np.concatenate([rectangle(5, 5, 10, 10), 0 * rectangle(0, 0, 1, 1)]))
    before = copy.deepcopy(truth)
    report = measure(truth, encodings=[Grid(28)])
    assert (report["instances"], report["empty"]) == (1, 1)
    assert figures(report, "grid 28x28") == PERFECT
    assert truth == before


@pytest.mark.parametrize(
    "truth",
    [
        truth_of(np.zeros((0, 9, 9))),
        truth_of(np.zeros((1, 9, 9))),
        truth_of(np.ones((1, 9, 9)), iscrowd=1),
    ],
    ids=["no annotations", "no pixels", "crowds only"],
)
def test_a_truth_without_masks_is_refused(truth):
    """The mean of nothing would be reported as NaN."""
    with pytest.raises(DataError, match="no mask to encode"):
        measure(truth)


def test_encodings_of_the_same_name_are_refused():
    """One would silently stand in the other's row."""
    with pytest.raises(DataError, match="different names, not PatchDCT 6, PatchDCT 6"):
        measure(truth_of(blobs(1, 20)), encodings=[PatchDct(6), PatchDct(6, patch=16)])


def test_the_report_is_plain_and_the_table_shows_it():
    """A numpy number in the report could not be written as JSON; a column in the wrong place would go unnoticed."""
    report = measure(truth_of(blobs(3, 100)), encodings=[Grid(28), PatchDct(6)])
    assert json.loads(json.dumps(report)) == report
    heads, _, *lines = [line.strip("|").split("|") for line in table(report).splitlines()]
    assert [line[0].strip() for line in lines] == ["grid 28x28", "PatchDCT 6"]
    shown = dict(zip((head.strip() for head in heads), (cell.strip() for cell in lines[1]), strict=True))
    row = report["encodings"]["PatchDCT 6"]
    assert shown == {
        "encoding": "PatchDCT 6",
        "mask IoU": f"{100 * row['mask_iou']:.2f}",
        "boundary IoU": f"{100 * row['boundary_iou']:.2f}",
        "mask AP": f"{100 * row['mask']['AP']:.2f}",
        "boundary AP": f"{100 * row['boundary']['AP']:.2f}",
        "numbers": f"{row['numbers']:.0f}",
        "bytes": f"{row['bytes']:.0f}",
    }
