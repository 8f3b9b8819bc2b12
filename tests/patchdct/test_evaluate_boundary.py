"""Boundary AP: against its definition, and against a plain computation of it."""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_api
from pycocotools.cocoeval import COCOeval
from scipy import ndimage

from patchdct import scenes
from patchdct.evaluate import boundary, boundary_width, evaluate
from patchdct.evaluate.engines import ENGINES
from patchdct.evaluate.rows import read_rows
from tests.patchdct.evaluated import COCO_MINI, KERNEL, accumulated, block, curves_of, encode, nasty, perfect, perturbed

ROWS = ("images", "annotations")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The truth of eight drawn scenes."""
    path = scenes.write_scenes(tmp_path_factory.mktemp("scenes"), images=8, seed=1, size=128)
    return dict(json.loads(path.read_text()))


def test_one_pixel_costs_boundary_ap_more_than_mask_ap(drawn: dict[str, Any]) -> None:
    """Boundary AP that does not react to a thicker outline would not measure what PatchDCT improves."""
    results = perfect(drawn)
    for row in results:
        row["segmentation"] = encode(cv2.dilate(mask_api.decode(row["segmentation"]), KERNEL))

    report = evaluate(drawn, results)

    assert report["boundary"]["AP"] < report["mask"]["AP"] - 0.05 < 0.95


def test_boundary_ap_equals_its_definition(drawn: dict[str, Any]) -> None:
    """An outline too wide, one that ends at the image's edge, or a crowd that is counted would shift every figure."""
    results = perturbed(drawn, seed=3)
    crowds = {row["id"] for row in drawn["annotations"][::7]}
    truth = drawn | {"annotations": [row | {"iscrowd": int(row["id"] in crowds)} for row in drawn["annotations"]]}

    expected = boundary_ap(truth, results)

    for engine in ENGINES:
        report = evaluate(truth, results, metrics=["boundary"], engine=engine)
        assert report["boundary"]["AP"] == pytest.approx(expected, abs=1e-9)
    assert 0.05 < expected < 0.95


def boundary_ap(truth: dict[str, Any], results: list[dict[str, Any]]) -> float:
    """Boundary AP over IoU 0.5 to 0.95 from its definition, for fewer than 100 results, by masks of image size."""

    def regions(rle: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        mask = mask_api.decode(rle).astype(bool)
        steps = max(1, round(0.02 * math.hypot(*mask.shape)))
        # Outside the image counts as outside the mask (border_value 0).
        return mask, mask & ~ndimage.binary_erosion(mask, np.ones((3, 3), bool), iterations=steps, border_value=0)

    def iou(a: np.ndarray, b: np.ndarray) -> float:
        return float((a & b).sum() / max((a | b).sum(), 1))

    precisions = []
    for category_id in {row["category_id"] for row in truth["annotations"]}:
        objects = [
            (row, regions(row["segmentation"])) for row in truth["annotations"] if row["category_id"] == category_id
        ]
        wanted = [one for one in objects if not one[0]["iscrowd"]]
        ranked = sorted((row for row in results if row["category_id"] == category_id), key=lambda row: -row["score"])
        found = [(row, regions(row["segmentation"])) for row in ranked]
        for threshold in np.linspace(0.5, 0.95, 10):
            taken: set[int] = set()
            hits = []
            for result, (mask, edge) in found:
                overlaps = {
                    number: min(iou(mask, other_mask), iou(edge, other_edge))
                    for number, (row, (other_mask, other_edge)) in enumerate(wanted)
                    if number not in taken and row["image_id"] == result["image_id"]
                }
                best = max(overlaps, key=lambda number: overlaps[number], default=None)
                in_crowd = [
                    (mask & crowd).sum() / max(mask.sum(), 1)
                    for row, (crowd, _) in objects
                    if row["iscrowd"] and row["image_id"] == result["image_id"]
                ]
                if best is not None and overlaps[best] >= threshold:
                    hits.append(True)
                    taken.add(best)
                elif max(in_crowd, default=0) < threshold:
                    hits.append(False)
            true = np.cumsum(hits)
            recall, precision = true / len(wanted), true / np.arange(1, len(hits) + 1)
            precisions += [precision[recall >= level].max(initial=0) for level in np.linspace(0, 1, 101)]
    return float(np.mean(precisions))


class PlainBoundaryEval(COCOeval):
    """Boundary IoU of all pairs, by outlines as RLE of image size."""

    def computeIoU(self, image_id: int, category_id: int) -> Any:  # noqa: N802
        ious = super().computeIoU(image_id, category_id)
        if len(ious) == 0:
            return ious
        truth = self._gts[image_id, category_id]
        predictions = sorted(self._dts[image_id, category_id], key=lambda row: -row["score"])
        outlines = [[self.outline(row["segmentation"]) for row in rows] for rows in (predictions, truth)]
        edges = mask_api.iou(outlines[0][: self.params.maxDets[-1]], outlines[1], [0] * len(truth))
        return np.where([[row["iscrowd"] for row in truth]], ious, np.minimum(ious, edges))

    @staticmethod
    def outline(rle: dict[str, Any]) -> dict[str, Any]:
        mask = mask_api.decode(rle)
        return encode(boundary(mask, boundary_width(*mask.shape)))


@pytest.mark.parametrize(("seed", "limit"), [(1, 100), (2, 1), (3, 3), (4, 400)])
def test_curves_are_those_of_a_plain_computation(seed: int, limit: int) -> None:
    """Pairs that are passed over because they cannot match, and outlines cut to their boxes, must change no figure."""
    truth, results = nasty(seed)
    rows = read_rows(truth, results)

    plain = accumulated(truth, results, "segm", limit, PlainBoundaryEval).eval

    for engine in ENGINES:
        curves = curves_of(engine, rows, "boundary", limit)
        for name in ("precision", "recall", "scores"):
            assert getattr(curves, name) == pytest.approx(plain[name][..., 0], abs=1e-9)
    assert 0 < curves.precision[curves.precision > -1].mean() < 1


@pytest.mark.skipif(not COCO_MINI.is_file(), reason="the coco-mini data set is not beside the repository")
def test_figures_on_photographs_are_those_of_a_plain_computation() -> None:
    """Real objects in several parts, thin, and cut by the image's edge have outlines that drawn ones do not."""
    truth = json.loads(COCO_MINI.read_text())
    chosen = {image["id"] for image in truth["images"][:8]}
    truth = truth | {key: [row for row in truth[key] if row.get("image_id", row["id"]) in chosen] for key in ROWS}
    results = perturbed(truth)

    curves = curves_of("fast", read_rows(truth, results), "boundary", 100)

    plain = accumulated(truth, results, "segm", 100, PlainBoundaryEval).eval
    assert curves.precision == pytest.approx(plain["precision"][..., 0], abs=1e-9)
    assert curves.recall == pytest.approx(plain["recall"][..., 0], abs=1e-9)


def test_outlines_are_not_held() -> None:
    """Thousands of images have hundreds of thousands of outlines, which do not fit into memory together."""
    square = block(256, 4, 4, 248, 248)
    count = 40
    truth = {
        "images": [{"id": i, "height": 256, "width": 256} for i in range(count)],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"image_id": i, "category_id": 1, "segmentation": square} for i in range(count)],
    }
    results = [{"image_id": i, "category_id": 1, "segmentation": square, "score": 0.5} for i in range(count)]
    rows = read_rows(truth, results)

    curves_of("fast", rows, "boundary", 100)  # what is compiled stays

    tracemalloc.start()
    curves = curves_of("fast", rows, "boundary", 100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert curves.precision[..., 0].min() == pytest.approx(1)
    assert peak < count * 248 * 248 / 2


@pytest.mark.parametrize(("radius", "ap"), [(35, 0), (9, 0.4)])
def test_an_outline_alone_is_no_match(radius: int, ap: float) -> None:
    """A ring as wide as the boundary has its disc's boundary, and boundary IoU alone would take it for the disc."""
    disc = np.zeros((100, 100), np.uint8)
    cv2.circle(disc, (50, 50), radius, 1, -1)
    truth = {
        "images": [{"id": 4, "file_name": "a.jpg", "height": 100, "width": 100}],
        "categories": [{"id": 9, "name": "thing"}],
        "annotations": [{"id": 1, "image_id": 4, "category_id": 9, "segmentation": encode(disc)}],
    }
    ring = boundary(disc, boundary_width(100, 100))

    report = evaluate(truth, [{"image_id": 4, "category_id": 9, "score": 0.9, "segmentation": encode(ring)}])

    assert report["boundary"]["AP"] == report["mask"]["AP"] == pytest.approx(ap)


def test_boundary_is_closed_at_the_edge_of_the_image() -> None:
    """Without the zeros around the image, a mask that is cut by its edge would have no outline there."""
    full = np.ones((20, 30), np.uint8)

    edge = boundary(full, 2)

    expected = np.ones_like(full)
    expected[2:-2, 2:-2] = 0
    assert np.array_equal(edge, expected)
    assert (boundary_width(480, 640), boundary_width(10, 10)) == (16, 1)


def test_crowd_regions_excuse_predictions_inside_them() -> None:
    """A prediction amid a crowd has no outline in common with it, and must be ignored all the same."""
    crowd, inside, single = (np.zeros((100, 100), np.uint8) for _ in range(3))
    crowd[:60] = 1
    inside[20:40, 20:40] = 1
    single[70:95, 70:95] = 1
    truth = {
        "images": [{"id": 4, "file_name": "a.jpg", "height": 100, "width": 100}],
        "categories": [{"id": 9, "name": "thing"}],
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": 9, "segmentation": encode(crowd), "iscrowd": 1},
            {"id": 2, "image_id": 4, "category_id": 9, "segmentation": encode(single)},
        ],
    }
    results = [
        {"image_id": 4, "category_id": 9, "score": 0.9, "segmentation": encode(inside)},
        {"image_id": 4, "category_id": 9, "score": 0.5, "segmentation": encode(single)},
    ]

    report = evaluate(truth, results)

    assert report["boundary"]["AP"] == pytest.approx(1.0)
    assert report["mask"]["AP"] == pytest.approx(1.0)
