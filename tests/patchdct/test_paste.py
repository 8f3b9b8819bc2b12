"""`paste_rle` against what it stands in for: detectron2's paste over the whole image and pycocotools' RLE."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from patchdct.paste import paste_rle
from tests.patchdct.bench_paste import Image, coco_images, truth

Array = npt.NDArray[np.float32]
ULP = np.float32(2**-24)  # the next float32 below 0.5 is so much less


def mismatches(values: Array, boxes: Array, height: int, width: int, threshold: float = 0.5) -> list[int]:
    """The instances for which paste_rle does not give the expected counts, area and box."""
    counts, areas, tight = paste_rle(values, boxes, height, width, threshold)
    assert (areas.dtype, tight.dtype, tight.shape) == (np.int64, np.float64, (len(values), 4))
    found = zip(counts, areas.tolist(), tight.tolist(), strict=True)
    return [i for i, one in enumerate(found) if one != truth(values[i], boxes[i], height, width, threshold)]


def blobs(count: int, side: int, rng: np.random.Generator) -> Array:
    """Smooth random masks [count, side, side] with over- and undershoot."""
    coarse = torch.from_numpy(rng.normal(0.5, 0.6, (count, 1, max(1, side // 8), max(1, side // 8))).astype(np.float32))
    return F.interpolate(coarse, size=(side, side), mode="bilinear")[:, 0].numpy()


def random_boxes(count: int, height: int, width: int, rng: np.random.Generator) -> Array:
    """Boxes of all sizes [count, 4], many of which reach outside of the image."""
    corners = np.sort(rng.uniform(-0.3, 1.3, (count, 2, 2)), axis=1) * [width, height]
    return corners.reshape(count, 4).astype(np.float32)


@pytest.mark.parametrize("side", [1, 2, 7, 28, 30, 31, 61, 62, 112, 125])
def test_smooth_masks(side: int) -> None:
    """A mask side whose grid ends within a word, or just at its end, loses cells; another side or threshold is off."""
    rng = np.random.default_rng(side)
    for (height, width), threshold in itertools.product([(97, 131), (240, 180)], [0.5, 0.3, 0.75]):
        values, boxes = blobs(8, side, rng), random_boxes(8, height, width, rng)
        assert mismatches(values, boxes, height, width, threshold) == []


def masks_on_the_edge(side: int = 28) -> dict[str, Array]:
    """Masks [side, side] in which rounding decides, or which are all boundary or none."""
    rng = np.random.default_rng(5)
    row, column = np.indices((side, side))
    ramp = np.linspace(0, 1, side) + np.zeros((side, 1))
    masks = {
        "zeros": np.zeros((side, side)),
        "ones": np.ones((side, side)),
        "plateau at the threshold": np.full((side, side), 0.5),
        "plateau just below": np.full((side, side), 0.5) - ULP,
        "plateau around the threshold": 0.5 + ULP * rng.integers(-3, 4, (side, side)),
        "ties": rng.integers(0, 3, (side, side)) / 2,
        "checkerboard": (row + column) % 2,
        "checkerboard of two": (row // 2 + column // 2) % 2,
        "columns": column % 2,
        "rows": row % 2,
        "ramp down": ramp.T,
        "ramp to the right": ramp,
        "one node": (row == side // 2) & (column == side // 2),
        "frame": (row == 0) | (column == 0) | (row == side - 1) | (column == side - 1),
        "overshoot": rng.normal(0.5, 5, (side, side)),
        "saturated overshoot": np.where(rng.random((side, side)) < 0.5, -0.2, 1.2),
        "opposed at the threshold": np.where((row + column) % 2, 0.5 - 1e4, 0.5 + 1e4),
        "greatest of float32": np.where(rng.random((side, side)) < 0.5, -1, 1) * np.finfo(np.float32).max,
        "least of float32": np.where(rng.random((side, side)) < 0.5, 1e-45, 0.5),
    }
    return {name: mask.astype(np.float32) for name, mask in masks.items()}


BOXES = {
    "whole image": (0, 0, 56, 84),
    "pixel centres on nodes": (0, 0, 28, 28),
    "symmetric about nodes": (0, 14, 56, 70),
    "tall cells": (3, -400, 50, 500),
    "wide cells": (-500, 3, 400, 50),
    "plain": (10.3, 7.7, 45.9, 60.1),
    "one pixel wide": (20, 5, 21, 70),
    "one pixel": (20, 30, 21, 31),
    "less than a pixel": (20.4, 30.4, 20.6, 30.6),
    "less than a pixel, between centres": (20.6, 30.6, 20.9, 30.9),
    "over the corner": (-30, -20, 12, 15),
    "over the other corner": (40, 60, 99, 120),
    "outside": (-50, -50, -20, -20),
    "far outside": (1e7, 1e7, 1e7 + 4, 1e7 + 4),
    "mirrored left to right": (45.9, 7.7, 10.3, 60.1),
    "mirrored top to bottom": (10.3, 60.1, 45.9, 7.7),
    "mirrored both ways": (56, 84, 0, 0),
    "mirrored, tall cells": (3, 500, 50, -400),
    "no width": (10.5, 5, 10.5, 70),
    "no height": (10, 5.5, 40, 5.5),
    "a point": (10.5, 10.5, 10.5, 10.5),
    "hardly any width": (0, 0, 1e-40, 84),
    "huge": (-1e9, -1e9, 1e9, 1e9),
    "wider than float32": (-3e38, 0, 3e38, 84),
    "higher than float32": (0, -3e38, 56, 3e38),
    "higher than float32, mirrored": (0, 3e38, 56, -3e38),
}


@pytest.mark.parametrize("side", [1, 28])
@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES.keys())
def test_edge_cases(box: tuple[float, ...], side: int) -> None:
    """A tie goes to the other side, a full column is not joined, or a strange box reads or writes where it must not."""
    masks = masks_on_the_edge(side)
    boxes = np.tile(np.array(box, np.float32), (len(masks), 1))
    wrong = mismatches(np.stack(list(masks.values())), boxes, 84, 56)
    assert [list(masks)[i] for i in wrong] == []


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 2)])
def test_small_images(size: tuple[int, int]) -> None:
    """In an image of one row or column, runs of neighbouring columns touch, and the last one ends the image."""
    rng = np.random.default_rng(7)
    values = np.concatenate([blobs(20, 28, rng), np.ones((20, 28, 28), np.float32)])
    assert mismatches(values, random_boxes(40, *size, rng) * 2, *size) == []


@given(data=st.data(), side=st.integers(1, 5), height=st.integers(1, 30), width=st.integers(1, 30))
@settings(max_examples=150)
def test_any_mask_and_box(data: st.DataObject, side: int, height: int, width: int) -> None:
    """A combination that nobody thought of."""
    usual = st.sampled_from([0, 1, 0.5, 0.5 - float(ULP), 0.25, 0.75, -0.2, 1.2, 1e6, -1e6])
    values = data.draw(arrays.arrays(np.float32, (2, side, side), elements=usual | st.floats(-2, 2, width=32)))
    halves = st.integers(-80, 120).map(lambda n: n / 2)
    boxes = data.draw(arrays.arrays(np.float32, (2, 4), elements=halves | st.floats(-40, 60, width=32)))
    threshold = data.draw(st.sampled_from([0.5, 0.25, 0.3, 0.9]))
    assert mismatches(values, boxes, height, width, threshold) == []


def test_overshoot_beyond_the_margin_of_detectron2() -> None:
    """What a mask above 1 puts further than a pixel out of its box is left out, as by detectron2's paste of a crop."""
    values, box = np.full((1, 4, 4), 1.4, np.float32), np.array([[40, 40, 120, 120]], np.float32)
    _, _, tight = paste_rle(values, box, 160, 160)
    assert tight[0, 0] < 38
    assert mismatches(values, box, 160, 160) == []


def test_offsets_beyond_32_bits() -> None:
    """Offsets of a very large image wrap around."""
    height, width = 4_000_000, 1000
    counts, areas, boxes = paste_rle(
        np.ones((1, 28, 28), np.float32), np.array([[998, 10, 1000, 20]], np.float32), height, width
    )
    plain = [998 * height + 10, 10, height - 10, 10, height - 20]
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": plain}, height, width)
    assert counts == [rle["counts"].decode()]
    assert (areas.tolist(), boxes.tolist()) == ([20], [[998, 10, 2, 10]])


def test_counts_of_a_long_mask() -> None:
    """Edges and characters outgrow their buffers: a checkerboard of a thousand times as many runs as a usual mask."""
    row, column = np.indices((112, 112))
    values = np.tile(((row + column) % 2).astype(np.float32), (3, 1, 1))
    assert mismatches(values, np.tile(np.array([0, 0, 560, 700], np.float32), (3, 1)), 700, 560) == []


def test_no_instances() -> None:
    """An image without detections fails instead of giving empty columns."""
    counts, areas, boxes = paste_rle(np.zeros((0, 112, 112), np.float32), np.zeros((0, 4), np.float32), 480, 640)
    assert (counts, areas.shape, boxes.shape) == ([], (0,), (0, 4))


def test_layout_does_not_matter() -> None:
    """A transposed, strided or read-only array is read as if it were contiguous, or refused."""
    rng = np.random.default_rng(3)
    values, boxes = blobs(8, 28, rng), random_boxes(8, 60, 80, rng)
    plain = paste_rle(values[::2], boxes[::2].copy(), 60, 80)[0]
    turned, frozen = np.asfortranarray(values[::2]), boxes[::2].copy()
    frozen.flags.writeable = False
    assert paste_rle(turned, frozen, 60, 80)[0] == plain
    assert plain == [truth(*one, 60, 80)[0] for one in zip(values[::2], boxes[::2], strict=True)]


def test_threads_do_not_meet() -> None:
    """Threads, which run side by side as the GIL is released, write into each other's masks."""
    rng = np.random.default_rng(4)
    batches = [(blobs(4, 28, rng), random_boxes(4, 200, 300, rng)) for _ in range(40)]
    alone = [paste_rle(*batch, 200, 300)[0] for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda batch: paste_rle(*batch, 200, 300)[0], batches)) == alone


ONE = np.ones((1, 28, 28), np.float32)
BOX = np.array([[1, 1, 5, 5]], np.float32)
HOLE = np.where(np.arange(784).reshape(1, 28, 28) == 400, np.float32(np.nan), ONE)


@pytest.mark.parametrize(
    ("values", "boxes", "height", "width", "threshold", "message"),
    [
        (ONE.astype(np.float64), BOX, 9, 9, 0.5, "values must be a float32 numpy array, not float64"),
        (torch.ones(1, 28, 28), BOX, 9, 9, 0.5, "values must be a float32 numpy array, not Tensor"),
        (ONE, BOX.astype(np.int64), 9, 9, 0.5, "boxes must be a float32 numpy array, not int64"),
        (ONE[0], BOX, 9, 9, 0.5, r"values must have the shape \[N, M, M\]"),
        (ONE[:, 1:], BOX, 9, 9, 0.5, r"values must have the shape \[N, M, M\]"),
        (ONE[:, :0, :0], BOX, 9, 9, 0.5, "M at least 1"),
        (ONE, BOX[0], 9, 9, 0.5, r"boxes must have the shape \[1, 4\]"),
        (ONE, np.tile(BOX, (2, 1)), 9, 9, 0.5, r"boxes must have the shape \[1, 4\]"),
        (HOLE, BOX, 9, 9, 0.5, r"values\[0\] must be finite"),
        (np.concatenate([ONE, -np.inf * ONE]), np.tile(BOX, (2, 1)), 9, 9, 0.5, r"values\[1\] must be finite"),
        (ONE, BOX * np.float32(np.inf), 9, 9, 0.5, r"boxes\[0\] must be finite"),
        (ONE, BOX * np.float32(np.nan), 9, 9, 0.5, r"boxes\[0\] must be finite"),
        (ONE, BOX, 0, 9, 0.5, "height must be an integer of at least 1, not 0"),
        (ONE, BOX, 9, 9.0, 0.5, "width must be an integer"),
        (ONE, BOX, 2**16, 2**16, 0.5, r"height \* width must be at most"),
        (ONE, BOX, 9, 9, 0.0, "threshold must be from 1e-06 to 1e"),
        (ONE, BOX, 9, 9, float("nan"), "threshold must be from"),
    ],
)
def test_bad_input_is_refused(values, boxes, height, width, threshold, message) -> None:
    """Bad input gives a wrong mask, a crash or a traceback from inside numba, not one sentence."""
    with pytest.raises(ValueError, match=message) as caught:
        paste_rle(values, boxes, height, width, threshold)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def wrong_in(images: Iterable[Image]) -> tuple[int, int]:
    """How many instances there are, and how many of them are wrong."""
    sums = [(len(i.boxes), len(mismatches(i.values, i.boxes, i.height, i.width))) for i in images]
    total, wrong = (sum(column) for column in zip(*sums, strict=True))
    return total, wrong


def data_set(shared_data: Path, name: str) -> Path:
    path = shared_data / name
    if not (path / "annotations").is_dir():
        pytest.skip(f"needs the image set {name} of ../shared/data, which is not there")
    return path


@pytest.mark.parametrize("name", ["coco-mini", "nuclei"])
def test_some_real_shapes(shared_data: Path, name: str) -> None:
    """Masks as the model gives them, which the drawn ones do not resemble, come out wrong."""
    total, wrong = wrong_in(itertools.islice(coco_images(data_set(shared_data, name)), 8))
    assert total > 30
    assert wrong == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "least"), [("coco-mini", 2200), ("nuclei", 21000)])
def test_all_real_shapes(shared_data: Path, name: str, least: int) -> None:
    """One mask in thousands comes out wrong."""
    total, wrong = wrong_in(coco_images(data_set(shared_data, name)))
    assert total > least
    assert wrong == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("width", "height", "every"), [(2048, 1024, 5), (4000, 3000, 24), (8000, 4000, 60)])
def test_real_shapes_in_large_images(shared_data: Path, width: int, height: int, every: int) -> None:
    """In large images, where turns are computed and not searched, one falls a pixel off."""
    images = itertools.islice(coco_images(data_set(shared_data, "coco-mini")), 0, None, every)
    total, wrong = wrong_in(image.scaled(width, height) for image in images)
    assert total > 10
    assert wrong == 0
