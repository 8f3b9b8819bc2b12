"""The DCT of masks: its zigzag order, its values, and its inverses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.fft import dctn, idctn

from patchdct import dct


def truncated(spectrum: np.ndarray, dim: int) -> np.ndarray:
    """The spectrum [n, n] with only the first `dim` coefficients of the zigzag scan."""
    n = len(spectrum)
    order = sorted(np.ndindex(n, n), key=lambda rc: (sum(rc), rc[sum(rc) % 2 == 0]))
    kept = np.zeros_like(spectrum)
    for place in order[:dim]:
        kept[place] = spectrum[place]
    return kept


def test_zigzag_order():
    """Rows and columns in the other order would transpose the masks of every published checkpoint."""
    assert dct.zigzag(8, 15) == (
        *((0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2), (0, 3), (1, 2), (2, 1), (3, 0)),
        *((4, 0), (3, 1), (2, 2), (1, 3), (0, 4)),
    )
    whole = dct.zigzag(112, 300)
    assert set(whole) == {(r, c) for r in range(24) for c in range(24) if r + c <= 23}
    assert whole[-1] == (23, 0)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_zigzag_visits_every_frequency_once(n):
    """Behind the longest diagonal the scan must stay within the square."""
    order = dct.zigzag(n, n * n)
    assert sorted(order) == [(r, c) for r in range(n) for c in range(n)]
    assert order[-1] == (n - 1, n - 1)
    assert [r + c for r, c in order] == sorted(r + c for r, c in order)


@pytest.mark.parametrize("dim", [0, 65])
def test_zigzag_refuses_more_than_there_is(dim):
    """A vector longer than the spectrum must not be cut silently."""
    with pytest.raises(ValueError, match=f"an 8x8 mask has 1 to 64 DCT coefficients, not {dim}"):
        dct.zigzag(8, dim)


def test_known_values_of_patches():
    """Another normalisation, sign or axis order, and published checkpoints decode to noise."""
    patches = torch.zeros(4, 8, 8)
    patches[0, :, :4] = 1
    patches[1, :4] = 1
    patches[2, 0, 0] = 1
    patches[3] = torch.ones(8, 8).tril()
    expected = [
        (4, 3.62451, 0, 0, 0, 0),
        (4, 0, 3.62451, 0, 0, 0),
        (0.125, 0.17338, 0.17338, 0.16332, 0.240485, 0.16332),
        (4.5, 2.277705, -2.277705, 0, 0.5, 0),
    ]
    vectors = dct.encode(patches, 6)
    assert vectors.dtype == torch.float64
    torch.testing.assert_close(vectors, torch.tensor(expected, dtype=torch.float64), atol=5e-6, rtol=0)

    row = torch.tensor([1.1284, 1.0327, 0.8560, 0.6250, 0.3750, 0.1440, -0.0327, -0.1284])
    torch.testing.assert_close(dct.decode(vectors[:1], 8)[0], row.expand(8, 8), atol=5e-5, rtol=0)


def test_known_values_of_a_mask():
    """The transform of a whole mask: an ellipse of 2721 pixels."""
    y, x = torch.meshgrid(torch.arange(112), torch.arange(112), indexing="ij")
    ellipse = ((x - 60) / 35) ** 2 + ((y - 40) / 25) ** 2 < 1
    assert ellipse.sum() == 2721
    expected = [24.2946, -3.8282, 13.6113, -17.2047, -2.1391, -19.6946, 3.1379, -10.8902, 2.6795, -18.0527]
    vector = dct.encode(ellipse[None], 300)[0]
    torch.testing.assert_close(vector[:10].tolist(), expected, atol=5e-5, rtol=0)
    assert float(vector[0]) == pytest.approx(2721 / 112)


@pytest.mark.parametrize("n", [8, 112])
def test_all_coefficients_give_the_mask_back(n):
    """Encoding or decoding that loses anything but high frequencies."""
    masks = torch.rand(3, n, n) < 0.5
    again = dct.decode(dct.encode(masks, n * n), n)
    assert again.dtype == torch.float32
    torch.testing.assert_close(again, masks.float(), atol=1e-5, rtol=0)


@given(st.data())
def test_same_as_scipy(data):
    """An error in the transform at any size and number of coefficients, even if it is its own inverse."""
    n = data.draw(st.integers(1, 12))
    dim = data.draw(st.integers(1, n * n))
    mask = data.draw(arrays.arrays(np.float64, (n, n), elements=st.floats(-2, 2, width=32, allow_subnormal=False)))
    expected = dctn(mask, norm="ortho")
    vector = dct.encode(torch.from_numpy(mask)[None], dim)
    np.testing.assert_allclose(vector[0], [expected[place] for place in dct.zigzag(n, dim)], atol=1e-12)
    np.testing.assert_allclose(
        dct.decode(vector.float(), n)[0], idctn(truncated(expected, dim), norm="ortho"), atol=2e-5
    )


def test_same_as_scipy_at_full_size():
    """The 300 coefficients of 112 x 112 that the model regresses."""
    masks = torch.rand(2, 112, 112) < 0.3
    vectors = dct.encode(masks, 300)
    for mask, vector, decoded in zip(masks.numpy(), vectors, dct.decode(vectors.float(), 112), strict=True):
        spectrum = dctn(mask.astype(np.float64), norm="ortho")
        np.testing.assert_allclose(vector, [spectrum[place] for place in dct.zigzag(112, 300)], atol=1e-10)
        np.testing.assert_allclose(decoded, idctn(truncated(spectrum, 300), norm="ortho"), atol=1e-5)


@pytest.mark.parametrize(("n", "dim", "size"), [(112, 300, 42), (112, 300, 112), (8, 6, 8), (8, 64, 3), (16, 10, 20)])
def test_decoding_with_resizing(n, dim, size):
    """The one linear map must be decoding and then nearest interpolation, as the checkpoints were trained."""
    vectors = torch.randn(5, dim) * 3
    expected = F.interpolate(dct.decode(vectors, n)[:, None], size)[:, 0]
    torch.testing.assert_close(dct.decode_resized(vectors, n, size), expected, atol=1e-5, rtol=0)


def test_pixels_that_resizing_keeps():
    """The 42 pixels of 112 are those of nearest interpolation: rounded down, not to the pixel's centre."""
    ramp = torch.arange(112.0)
    rows = dct.encode(ramp[None, :, None].expand(1, 112, 112), 112 * 112).float()
    kept = dct.decode_resized(rows, 112, 42)[0, :, 0]
    expected = [math.floor(8 * k / 3) for k in range(42)]
    assert expected[:12] == [0, 2, 5, 8, 10, 13, 16, 18, 21, 24, 26, 29]
    assert expected[-4:] == [101, 104, 106, 109]
    torch.testing.assert_close(kept, torch.tensor(expected, dtype=torch.float32), atol=2e-3, rtol=0)


def test_half_precision_vectors_decode_in_full():
    """Under autocast the decoding itself must not run in 8 bits of mantissa."""
    vectors = torch.randn(4, 300).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decoded, resized = dct.decode(vectors, 112), dct.decode_resized(vectors, 112, 42)
    assert decoded.dtype == resized.dtype == torch.float32
    torch.testing.assert_close(decoded, dct.decode(vectors.float(), 112), atol=0, rtol=0)
    torch.testing.assert_close(resized, dct.decode_resized(vectors.float(), 112, 42), atol=0, rtol=0)


def test_training_after_inference():
    """Tables that were made in inference mode cannot take part in a gradient: training would raise after labeling."""
    n, dim = 24, 17  # of no other test
    with torch.inference_mode():
        dct.decode(torch.ones(1, dim), n)
        dct.decode_resized(torch.ones(1, dim), n, 6)
    vectors = torch.ones(1, dim, requires_grad=True)
    (dct.decode(vectors, n).sum() + dct.decode_resized(vectors, n, 6).sum()).backward()
    assert vectors.grad is not None
    assert vectors.grad.abs().sum() > 0


def test_no_masks():
    """An image without detections."""
    assert dct.encode(torch.zeros(0, 8, 8), 6).shape == (0, 6)
    assert dct.decode(torch.zeros(0, 6), 8).shape == (0, 8, 8)
    assert dct.decode_resized(torch.zeros(0, 300), 112, 42).shape == (0, 42, 42)
