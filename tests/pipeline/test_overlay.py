"""Pictures of labels: what a reviewer judges the masks by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from pipeline import overlay
from pipeline.records import NO_INSTANCES, Category, ImageLabels, Instances

CATEGORIES = (Category(id=3, name="ring"), Category(id=7, name="tile"))
GREY = np.full((120, 160, 3), 128, np.uint8)


def instances_of(*masks: np.ndarray, category_ids: tuple[int, ...] | None = None) -> Instances:
    rles = [mask_api.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    return Instances(
        category_ids=np.array(category_ids or [3] * len(masks), np.int32),
        scores=np.linspace(0.9, 0.5, len(masks), dtype=np.float32),
        boxes=np.array([mask_api.toBbox(rle) for rle in rles], np.float32),
        areas=np.array([mask.sum() for mask in masks], np.int64),
        counts=tuple(rle["counts"].decode() for rle in rles),
    )


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((120, 160), bool)
    mask[top:bottom, left:right] = True
    return mask


@pytest.fixture
def ring() -> np.ndarray:
    mask = rectangle(30, 40, 90, 100)
    mask[50:70, 60:80] = False
    return mask


def test_tint_covers_the_mask_and_leaves_holes_clear(ring: np.ndarray) -> None:
    """A filled hole would let a wrong mask pass for a right one."""
    picture = overlay.draw_labels(GREY, instances_of(ring), CATEGORIES, names=False, scores=False)

    assert np.array_equal((picture != GREY).any(axis=2), ring)


def test_outlines_follow_the_hole_too(ring: np.ndarray) -> None:
    """Without a line around it, a small hole in a pale mask is not seen."""
    picture = overlay.draw_labels(GREY, instances_of(ring), CATEGORIES, names=False, scores=False)

    tint, line = picture[40, 50], picture[30, 50]
    assert (tint != line).any()
    assert np.array_equal(picture[49, 70], line)


def test_best_scored_instance_lies_on_top() -> None:
    """A doubtful mask over a sure one would hide what the model is sure of."""
    below, above = rectangle(20, 20, 80, 80), rectangle(40, 40, 100, 100)
    alone = overlay.draw_labels(GREY, instances_of(above), CATEGORIES, alpha=1, names=False, scores=False)

    both = overlay.draw_labels(GREY, instances_of(above, below), CATEGORIES, alpha=1, names=False, scores=False)

    assert np.array_equal(both[above], alone[above])


def test_many_instances_have_colours_of_their_own() -> None:
    """Two touching instances of one colour look like one."""
    colours = np.array([overlay._colour(index) for index in range(100)], int)

    assert len(np.unique(colours, axis=0)) == 100
    assert np.abs(np.diff(colours, axis=0)).sum(axis=1).min() > 60


def test_scale_enlarges_pixels_and_keeps_the_image() -> None:
    """A smoothed picture would hide the steps of a mask that a reviewer looks for."""
    image = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    before = image.copy()

    picture = overlay.draw_labels(image, instances_of(rectangle(30, 40, 60, 80)), CATEGORIES, scale=3)

    assert picture.shape == (360, 480, 3)
    assert np.array_equal(picture[1::3, 1::3][70:], image[70:])
    assert np.array_equal(image, before)


def test_names_scores_and_boxes_are_optional() -> None:
    """Text over small instances hides them, so that each part can be left out."""
    triangle = np.tril(rectangle(30, 40, 90, 100), 0)
    labels = instances_of(triangle)
    bare = overlay.draw_labels(GREY, labels, CATEGORIES, names=False, scores=False)

    for option in ({"names": True}, {"scores": True}, {"boxes": True}):
        chosen = {"names": False, "scores": False} | option
        assert not np.array_equal(overlay.draw_labels(GREY, labels, CATEGORIES, **chosen), bare)


def test_text_stays_in_the_picture_and_off_other_text() -> None:
    """Texts on top of each other, or cut by the edge, cannot be read."""
    boxes = [(0.0, 0.0, 20.0, 20.0), (140.0, 0.0, 160.0, 10.0), (1.0, 1.0, 20.0, 20.0), (100.0, 110.0, 160.0, 120.0)]
    taken: list[overlay.Rectangle] = []
    for box in boxes:
        spot = overlay._spot(box, 50, 14, 160, 120, taken)
        assert 0 <= spot[0] <= spot[2] <= 160
        assert 0 <= spot[1] <= spot[3] <= 120
        assert all(overlay._overlap(spot, other) == 0 for other in taken)
        taken.append(spot)


def test_instance_of_an_unnamed_category_is_still_drawn(ring: np.ndarray) -> None:
    """Labels of a model whose categories the reader lacks must not stop a gallery."""
    labels = instances_of(ring, ring, category_ids=(99, 7))

    assert (overlay.draw_labels(GREY, labels, CATEGORIES) != GREY).any()


def test_image_without_instances_is_returned_as_it_is() -> None:
    """Empty images are part of a gallery."""
    assert np.array_equal(overlay.draw_labels(GREY, NO_INSTANCES, CATEGORIES), GREY)


def test_labels_of_another_size_are_refused(ring: np.ndarray) -> None:
    """Masks over a resized copy of their image would look shifted, or fail deep inside the decoder."""
    labels = ImageLabels(
        key="a.jpg", image_id=1, uri="a.tar", height=120, width=160, instances=instances_of(ring), status="labelled"
    )

    assert overlay.draw_labels(GREY, labels, CATEGORIES).shape == GREY.shape
    with pytest.raises(ValueError, match=r"a\.jpg are for 240 x 160 pixels .* but the image has 120 x 160"):
        overlay.draw_labels(GREY, replace(labels, height=240), CATEGORIES)


def test_sheet_holds_every_tile_whole() -> None:
    """Tiles of unlike sizes must neither overlap nor be cut."""
    tiles = [np.full((20 + 7 * n, 60 - 5 * n, 3), (10 * n, 200, 7), np.uint8) for n in range(5)]

    sheet = overlay.contact_sheet(tiles, columns=2, captions=["one", "two", "three", "a" * 90, ""])

    for number, tile in enumerate(tiles):
        rows, columns = np.nonzero((sheet == tile[0, 0]).all(axis=2))
        assert len(rows) == tile.shape[0] * tile.shape[1]
        assert (int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1) == tile.shape[:2], number


def test_captions_are_written_below_their_tile_and_fit_it() -> None:
    """A long object name must not run into its neighbour's."""
    tiles = [np.zeros((40, 90, 3), np.uint8)] * 2
    plain = overlay.contact_sheet(tiles, columns=2, captions=["", ""])

    sheet = overlay.contact_sheet(tiles, columns=2, captions=["s3://bucket/a/very/long/name/of/an/image.jpg", ""])

    _, columns = np.nonzero((sheet != plain).any(axis=2))
    assert 8 <= columns.min() <= columns.max() < 8 + 90
    assert overlay.contact_sheet(tiles, columns=9).shape == (56, 204, 3)


@pytest.mark.parametrize(
    ("tiles", "columns", "captions", "sentence"),
    [
        (0, 2, None, "0 tiles in 2 columns"),
        (1, 0, None, "1 tiles in 0 columns"),
        (2, 2, ["a"], "1 captions .* 2 tiles"),
    ],
)
def test_sheet_refuses_what_it_cannot_lay_out(
    tiles: int, columns: int, captions: list[str] | None, sentence: str
) -> None:
    """Captions that are one short would name the wrong images."""
    with pytest.raises(ValueError, match=sentence):
        overlay.contact_sheet([GREY] * tiles, columns=columns, captions=captions)


def test_png_reads_back_the_same(tmp_path: Path, ring: np.ndarray) -> None:
    """Swapped channels or lossy storage would show colours that nobody drew."""
    picture = overlay.draw_labels(GREY, instances_of(ring), CATEGORIES)

    overlay.write_png(tmp_path / "a.png", picture)

    with Image.open(tmp_path / "a.png") as stored:
        assert np.array_equal(np.array(stored), picture)
