"""Resizing: the values of Pillow, by both forms, whatever the sizes and the layout in memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from patchdct.resizing import resize, resize_tensor

Pixels = npt.NDArray[np.uint8]


def by_pillow(image: Pixels, size: tuple[int, int]) -> Pixels:
    """uint8 [3, h, w]."""
    resized = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized).transpose(2, 0, 1)


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    """Grey and coloured values, and many of the least and the greatest, where sums come closest to what they may be."""
    values = np.random.default_rng(seed).integers(-128, 384, (height, width, 3))
    return np.clip(values, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (48, 64, (80, 107)),  # enlarged
        (300, 400, (80, 107)),  # reduced
        (97, 131, (97, 131)),  # as it is
        (97, 131, (97, 60)),
        (97, 131, (60, 131)),
        (300, 100, (133, 44)),  # tall and reduced: heights first
        (100, 70, (60, 50)),  # the height loses twice as much as the width: widths first, still
        (100, 70, (59, 50)),  # and a pixel more
        (100, 70, (120, 300)),
        (100, 70, (90, 80)),
        (30, 400, (80, 107)),
        (1, 1, (7, 9)),
        (1, 4000, (1, 96)),
        (4000, 1, (96, 1)),
        (900, 2, (3, 1)),
        (5, 7, (1, 1)),
        (1000, 1333, (800, 1066)),
    ],
)
def test_same_values_as_pillow(height, width, size):
    """Labels that change with where images are resized, or are not those that a model was measured by."""
    image = noise(height, width)
    expected = by_pillow(image, size)
    for found in (resize(image, size), resize_tensor(torch.from_numpy(image)[None], size)[0].numpy()):
        assert (found.shape, found.dtype) == ((3, *size), np.uint8)
        np.testing.assert_array_equal(found, expected)


sides = st.integers(1, 150)


@given(height=sides, width=sides, to_height=sides, to_width=sides, seed=st.integers(0, 1000))
def test_same_values_as_pillow_at_any_size(height, width, to_height, to_width, seed):
    """A size at which a neighbour is left out, a weight rounded otherwise, or the other direction taken first."""
    image, size = noise(height, width, seed), (to_height, to_width)
    expected = by_pillow(image, size)
    np.testing.assert_array_equal(resize(image, size), expected)
    np.testing.assert_array_equal(resize_tensor(torch.from_numpy(image)[None], size)[0].numpy(), expected)


@pytest.mark.parametrize("size", [(64, 90), (80, 107), (30, 41), (20, 85)])
def test_order_of_colours(size):
    """Red where blue is."""
    image = noise(64, 90)
    expected = by_pillow(image, size)[::-1]
    np.testing.assert_array_equal(resize(image, size, reverse=True), expected)
    found = resize_tensor(torch.from_numpy(image)[None], size, reverse=True)
    np.testing.assert_array_equal(found[0].numpy(), expected)


@pytest.mark.parametrize("size", [(64, 60), (80, 107)])
def test_layout_in_memory(size):
    """A mirrored image, a part of one, and one that may not be written to: read as if they were of another layout."""
    image = noise(64, 90)
    locked = image.copy()
    locked.flags.writeable = False
    for shown in (image[:, ::-1], image[::-1], image[:, 10:70], image.transpose(1, 0, 2), np.asfortranarray(image)):
        found = resize(shown, size)
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, by_pillow(np.ascontiguousarray(shown), size))
    np.testing.assert_array_equal(resize(locked, size), by_pillow(image, size))
    np.testing.assert_array_equal(image, noise(64, 90))


@pytest.mark.parametrize("size", [(64, 90), (80, 107), (30, 41)])
def test_several_images_at_once(size):
    """An image that is given the values of another one of its batch."""
    images = [noise(64, 90, seed) for seed in range(3)]
    found = resize_tensor(torch.from_numpy(np.stack(images)), size)
    assert found.is_contiguous()
    for one, image in zip(found.numpy(), images, strict=True):
        np.testing.assert_array_equal(one, by_pillow(image, size))
    assert resize_tensor(torch.zeros(0, 64, 90, 3, dtype=torch.uint8), size).shape == (0, 3, *size)


@pytest.mark.gpu
@pytest.mark.parametrize(("height", "width", "size"), [(480, 640, (800, 1067)), (3000, 4000, (800, 1067))])
def test_same_values_on_a_gpu(height, width, size):
    """Labels that depend on where images are resized."""
    images = np.stack([noise(height, width, seed) for seed in range(2)])
    found = resize_tensor(torch.from_numpy(images).cuda(), size, reverse=True)
    assert found.is_cuda
    for one, image in zip(found.cpu().numpy(), images, strict=True):
        np.testing.assert_array_equal(one, resize(image, size, reverse=True))
