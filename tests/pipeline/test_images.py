"""Bytes to pixels: every accepted format and mode, and what is refused."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ImageError
from pipeline.images import decode, looks_like_image
from pipeline.records import REASONS, Pixels
from tests.fuzz import bombs

FORMATS = ("JPEG", "PNG", "WebP", "TIFF", "BMP")
LOSSLESS = {"PNG": {}, "WebP": {"lossless": True}, "TIFF": {}, "BMP": {}}
ORIENTATION = 274
TURNED = {  # how the upright picture comes from the stored one, by EXIF orientation
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
    8: lambda stored: np.rot90(stored),
}


def picture(height: int = 24, width: int = 36) -> Pixels:
    """A smooth colour picture without symmetries."""
    y, x = np.mgrid[:height, :width]
    channels = (5 * x, 9 * y, 40 + 2 * x + 3 * y)
    return np.stack(channels, axis=2).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image | Pixels, format: str, **options: Any) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def oriented(orientation: Any) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def decoded(data: bytes, *, max_bytes: int = 10**7, max_pixels: int = 10**7) -> Pixels:
    return decode(data, max_bytes=max_bytes, max_pixels=max_pixels)


def refusal(data: bytes, **limits: int) -> str:
    with pytest.raises(ImageError) as caught:
        decoded(data, **limits)
    message = str(caught.value)
    assert message.partition(": ")[0] in REASONS
    assert "\n" not in message
    assert " at 0x" not in message
    return message


def png_header(width: int, height: int) -> bytes:
    """A PNG that ends after a header of this size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def tiff(tags: dict[int, int], pixels: bytes) -> bytes:
    """A little-endian TIFF of one strip, or of one tile, written by hand where Pillow does not write such."""
    tags = {**tags, (324 if 322 in tags else 273): 8, (325 if 322 in tags else 279): len(pixels)}
    entries = b"".join(
        struct.pack("<HHII", tag, 4 if value > 65535 else 3, 1, value) for tag, value in sorted(tags.items())
    )
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


@pytest.mark.parametrize("format", LOSSLESS)
def test_colours_are_exact(format: str) -> None:
    """Channels swapped, or rows mirrored, in one of the formats."""
    pixels = decoded(encoded(picture(), format, **LOSSLESS[format]))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable  # torch warns of arrays that are not
    np.testing.assert_array_equal(pixels, picture())


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
def test_jpeg_is_as_pillow_decodes_it(options: dict[str, Any]) -> None:
    """A faster decoder that rounds in another way, so that masks depend on it."""
    data = encoded(picture(), "JPEG", **options)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(decoded(data), np.asarray(image))


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("format", ["PNG", "WebP", "TIFF"])
def test_orientation_is_applied_once(format: str, orientation: int) -> None:
    """A photo lying on its side, or a TIFF turned by Pillow and then again."""
    data = encoded(picture(), format, exif=oriented(orientation), **LOSSLESS[format])
    np.testing.assert_array_equal(decoded(data), TURNED[orientation](picture()))


@pytest.mark.parametrize("orientation", TURNED)
def test_oriented_jpegs_are_turned(orientation: int) -> None:
    """A phone's photo labelled lying on its side."""
    plain = decoded(encoded(picture(), "JPEG"))
    data = encoded(picture(), "JPEG", exif=oriented(orientation))
    np.testing.assert_array_equal(decoded(data), TURNED[orientation](plain))


@pytest.mark.slow  # loads detectron2
def test_jpegs_are_as_detectron2_reads_them(tmp_path: Path) -> None:
    """Masks that lie elsewhere than those of the model's own evaluation."""
    from detectron2.data.detection_utils import read_image

    path = tmp_path / "image.jpg"
    grey, cmyk = Image.fromarray(picture()).convert("L"), Image.fromarray(picture()).convert("CMYK")
    images = [encoded(picture(), "JPEG", exif=oriented(orientation)) for orientation in range(10)]
    for data in [*images, encoded(grey, "JPEG"), encoded(cmyk, "JPEG")]:
        path.write_bytes(data)
        np.testing.assert_array_equal(decoded(data), read_image(path, "RGB"))


def test_orientation_in_xmp_counts_as_in_detectron2() -> None:
    """An image turned by an editor that writes XMP only."""
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    pixels = decoded(encoded(picture(), "WebP", lossless=True, xmp=xmp))
    np.testing.assert_array_equal(pixels, TURNED[6](picture()))


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0garbage that is no directory",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01\x03\0\xff\xff\xff\xff\xff\xff\xff\xff" * 3,
        oriented(0),
        oriented(99),
        b"Exif\0\0II*\0\x08\0\0\0\x01\0" + b"\x12\x01\x02\0\x04\0\0\0six\0" + bytes(4),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged metadata
def test_absurd_metadata_do_not_cost_the_image(exif: bytes | Image.Exif) -> None:
    """Good pixels quarantined because a camera or an editor wrote nonsense beside them."""
    np.testing.assert_array_equal(decoded(encoded(picture(), "PNG", exif=exif)), picture())
    assert decoded(encoded(picture(), "JPEG", exif=exif)).shape == (24, 36, 3)


def test_grey_and_bits_fill_three_channels() -> None:
    """A single channel taken for red."""
    grey = picture()[:, :, 0]
    np.testing.assert_array_equal(decoded(encoded(grey, "PNG")), np.repeat(grey[:, :, None], 3, axis=2))
    bits = Image.fromarray(grey).point(lambda value: 255 * (value > 90), "1")
    for format in ("PNG", "TIFF", "BMP"):
        np.testing.assert_array_equal(decoded(encoded(bits, format))[:, :, 1], 255 * (grey > 90))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(0, 250, 10))])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP"])
def test_palettes_are_looked_up(format: str, transparency: int | bytes | None) -> None:
    """Palette numbers taken for grey, or a transparent palette that warns and fails."""
    palette = Image.fromarray(picture()).quantize(25)
    options = {} if transparency is None or format != "PNG" else {"transparency": transparency}
    np.testing.assert_array_equal(decoded(encoded(palette, format, **options)), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize(("format", "mode"), [("PNG", "RGBA"), ("PNG", "LA"), ("WebP", "RGBA"), ("TIFF", "RGBA")])
def test_alpha_is_dropped(format: str, mode: str) -> None:
    """Colours mixed with black where an image is transparent."""
    image = Image.fromarray(picture()).convert(mode)
    image.putalpha(Image.fromarray(picture()[:, :, 1]))
    options = {"lossless": True, "exact": True} if format == "WebP" else {}
    np.testing.assert_array_equal(decoded(encoded(image, format, **options)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate"])
def test_cmyk_becomes_rgb(compression: str | None) -> None:
    """Four channels of ink taken for light."""
    image = Image.fromarray(picture()).convert("CMYK")
    data = encoded(image, "TIFF", compression=compression)
    np.testing.assert_array_equal(decoded(data), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})])
def test_16_bit_grey_is_scaled(format: str, options: dict[str, str]) -> None:
    """A 16-bit picture clipped to white, which is what a plain conversion gives."""
    values = np.linspace(0, 65535, 24 * 36).reshape(24, 36).astype(np.uint16)
    pixels = decoded(encoded(values, format, **options))
    np.testing.assert_array_equal(pixels, np.repeat(np.round(values / 257).astype(np.uint8)[:, :, None], 3, axis=2))


def test_16_bit_grey_of_other_byte_orders_and_senses() -> None:
    """Big-endian samples read as noise; 12 bits nearly black; "white is zero" as a negative."""
    values = np.linspace(0, 65535, 24 * 36).reshape(24, 36).astype(np.uint16)
    grey = np.round(values / 257).astype(np.uint8)
    big = Image.frombytes("I;16B", (36, 24), values.astype(">u2").tobytes())
    np.testing.assert_array_equal(decoded(encoded(big, "TIFF"))[:, :, 2], grey)
    size = {256: 36, 257: 24, 259: 1, 277: 1, 278: 24}
    inverted = tiff({**size, 258: 16, 262: 0}, (65535 - values).astype("<u2").tobytes())
    np.testing.assert_array_equal(decoded(inverted)[:, :, 0], grey)
    high, low = (values >> 4)[:, ::2].astype(np.uint32), (values >> 4)[:, 1::2].astype(np.uint32)
    packed = (high << 12 | low).astype(">u4").view(np.uint8).reshape(24, 18, 4)[:, :, 1:].tobytes()
    twelve = decoded(tiff({**size, 258: 12, 262: 1}, packed))
    np.testing.assert_array_equal(twelve[:, :, 0], np.round((values >> 4) / 4095 * 255))


def test_16_bit_colour_keeps_the_upper_half() -> None:
    """A 16-bit RGB PNG refused, or wrapped around."""
    import cv2

    wide = picture().astype(np.uint16) * 257
    done, data = cv2.imencode(".png", wide[:, :, ::-1])
    assert done
    np.testing.assert_array_equal(decoded(data.tobytes()), picture())


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_samples_are_refused(mode: str) -> None:
    """A depth map or a mask of instance numbers labelled as if it were a photo."""
    image = Image.fromarray(picture()).convert("L").convert(mode)
    assert refusal(encoded(image, "TIFF")).startswith("unsupported: TIFF of ")


def test_first_frame_counts() -> None:
    """An animation refused, or its last frame labelled."""
    still, other = Image.fromarray(picture()), Image.fromarray(255 - picture())
    for format, options in LOSSLESS.items():
        if format != "BMP":
            data = encoded(still, format, save_all=True, append_images=[other], **options)
            np.testing.assert_array_equal(decoded(data), picture())


def test_too_large_is_told_from_the_header() -> None:
    """Gigabytes of memory for a file of a kilobyte."""
    assert refusal(png_header(30000, 30000), max_pixels=10**8) == (
        "too_large: 30000x30000 is 900000000 pixels, over limits.max_image_pixels = 100000000"
    )
    data = encoded(picture(), "PNG")
    assert refusal(data, max_bytes=len(data) - 1).startswith(f"too_large: {len(data)} bytes")
    assert decoded(data, max_bytes=len(data), max_pixels=24 * 36).shape == (24, 36, 3)
    for format in FORMATS:
        assert refusal(encoded(picture(), format), max_pixels=24 * 36 - 1).startswith("too_large: 36x24")


def test_a_tile_may_not_be_larger_than_the_limit() -> None:
    """A TIFF of 16 pixels whose single tile unpacks to a gigabyte."""
    tile = {256: 4, 257: 4, 258: 8, 259: 8, 262: 1, 277: 1, 322: 32768, 323: 32768}
    assert refusal(tiff(tile, zlib.compress(bytes(1 << 20)))).startswith("too_large: 32768x32768")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP"])
def test_pillows_own_limit_does_not_interfere(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large image that the user allows, refused or warned about by a global of Pillow."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decoded(encoded(picture(), format)).shape == (24, 36, 3)


@pytest.mark.parametrize("format", ["WebP", "TIFF"])
def test_pillows_limit_is_told_as_ours(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of Pillow's that no one expects, which would end the shard."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert refusal(encoded(picture(), format)).startswith("too_large: ")


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"progressive": True}, {"lossless": True}])
@pytest.mark.parametrize("format", FORMATS)
def test_truncated_files_are_refused(format: str, options: dict[str, Any]) -> None:
    """The lower half of a photo labelled as grey."""
    noise = np.random.default_rng(3).integers(0, 30, (60, 80, 3), np.uint8)
    data = encoded(picture(60, 80) // 2 + noise, format, **options)
    for part in (0.1, 0.3, 0.5, 0.7, 0.9):
        cut = data[: max(12, int(len(data) * part))]
        if looks_like_image(cut):
            assert refusal(cut) == f"truncated: the {format} data end before the image does"


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged metadata
@pytest.mark.parametrize("format", FORMATS)
def test_damage_is_an_image_error(format: str) -> None:
    """One damaged image whose odd exception ends the whole shard."""
    random = np.random.default_rng(7)
    options = {} if format == "BMP" else {"exif": oriented(6)}
    good = encoded(picture(), format, **options)
    reasons = set()
    for _ in range(150):
        data = bytearray(good[: random.integers(len(good) // 2, len(good) + 1)])
        for place in random.integers(4, len(data), size=4):
            data[place] = random.integers(256)
        try:
            assert decoded(bytes(data), max_pixels=10**6).dtype == np.uint8
        except ImageError as error:
            reasons.add(str(error).partition(": ")[0])
    assert "truncated" in reasons
    assert reasons <= set(REASONS)


def test_what_is_no_image_says_how_it_begins() -> None:
    """An error page saved under an image's name, with nothing to tell it by."""
    assert refusal(b"<!DOCTYPE html><html>no such file</html>") == (
        "not_an_image: the bytes begin with b'<!DOCTYPE html><'; accepted are JPEG, PNG, WebP, TIFF, BMP"
    )
    assert refusal(b"BMW, Audi and others are makes of cars").startswith("not_an_image: ")
    assert refusal(b"\0").startswith("not_an_image: ")
    assert refusal(b"") == "empty: 0 bytes"


@pytest.mark.parametrize(("format", "name"), [("GIF", "GIF"), ("AVIF", "AVIF"), ("JPEG2000", "JPEG 2000")])
def test_other_formats_are_named(format: str, name: str) -> None:
    """A user who has to find out what his files are."""
    data = encoded(picture(), format)
    assert refusal(data) == f"unsupported: {name}; accepted are JPEG, PNG, WebP, TIFF, BMP"
    assert looks_like_image(data[:32])


def test_images_are_told_by_their_first_bytes() -> None:
    """A sidecar taken for an image, or an image without an extension for a sidecar."""
    assert all(looks_like_image(encoded(picture(), format)[:32]) for format in FORMATS)
    for head in (b"", b"{}", b'{"image": 1}', b"BM or not", b"RIFF\0\0\0\0WAVE", b"\x93NUMPY", b"MM/DD", bytes(32)):
        assert not looks_like_image(head)


def test_real_images_are_as_pillow_decodes_them(shared_data: Path) -> None:
    """Something in photos from cameras (profiles, thumbnails, grey JPEGs) that drawn images do not have."""
    paths = sorted((shared_data / "coco-mini" / "val").glob("*.jpg"))[::4]
    assert paths
    for path in paths:
        with Image.open(path) as image:
            np.testing.assert_array_equal(decoded(path.read_bytes()), np.asarray(image.convert("RGB")))


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a progressive JPEG of many scans": (
        lambda: bombs.progressive(2000, 1500, 2000),
        "undecodable: JPEG: more than 333 scans of 2000x1500 pixels",
    ),
    "a small one of more": (lambda: bombs.progressive(8, 8, 5000), "undecodable: JPEG: more than 1000 scans of 8x8"),
    "empty segments": (
        lambda: bombs.jpeg_with(bombs.segment(0xED, b"") * 500_000),
        "undecodable: JPEG: more than 10000 segments",
    ),
    "EXIF in many parts, which Pillow joins one by one": (
        lambda: bombs.jpeg_with(bombs.segment(0xE1, b"Exif\0\0" + bytes(60_000)) * 150),
        "undecodable: JPEG: more than 100 segments of EXIF",
    ),
    "filling": (lambda: bombs.jpeg_with(b"\xff" * 5_000_000), "undecodable: JPEG: more than 1000000 bytes between"),
    "filling behind an end": (
        lambda: bombs.jpeg_with(b"\xff\xd9" + b"\xff" * 5_000_000),
        "undecodable: JPEG: more than 1000000 bytes between",
    ),
    "tiles of a pixel": (lambda: bombs.tiles(2_000_000), "undecodable: TIFF: 2000000 values of its tag 324"),
    "text that unpacks": (
        lambda: bombs.png_with(bombs.chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(30_000_000)))),
        "undecodable: PNG: Decompressed data too large",
    ),
    "much text that unpacks": (
        lambda: bombs.png_with(
            *[bombs.chunk(b"zTXt", b"%d\0\0" % n + zlib.compress(bytes(10**6))) for n in range(100)]
        ),
        "undecodable: PNG: Too much memory used in text chunks",
    ),
    "runs that never fill the picture": (
        lambda: bombs.bmp(3000, 3000, b"\0\0" * 100_000 + b"\0\1"),
        "undecodable: BMP",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_do_not_cost_hours(name: str) -> None:
    """A worker that a file of a megabyte keeps busy until its shard's time is up."""
    make, reason = BOMBS[name]
    assert refusal(make()).startswith(reason)


@pytest.mark.parametrize("container", ["PNG", "JPEG", "WebP"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged metadata
def test_metadata_that_claim_gigabytes_take_none(container: str) -> None:
    """EXIF of 60 kB whose thousands of entries are each all of it."""
    absurd = bombs.exif(4000, 60_000)
    data = {
        "PNG": lambda: bombs.png_with(bombs.chunk(b"eXIf", absurd)),
        "JPEG": lambda: bombs.jpeg_with(bombs.segment(0xE1, b"Exif\0\0" + absurd)),
        "WebP": lambda: encoded(picture(48, 64), "WebP", exif=b"Exif\0\0" + absurd),
    }[container]()
    tracemalloc.start()
    try:
        assert decoded(data).shape == (48, 64, 3)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_cyclic_tiff_is_read_once() -> None:
    """A directory that names itself as the next one, and a reader that counts frames for ever."""
    cyclic = tiff({256: 36, 257: 24, 258: 8, 259: 1, 262: 1, 277: 1, 278: 24}, bytes(36 * 24))
    start = struct.unpack_from("<I", cyclic, 4)[0]
    assert decoded(cyclic[:-4] + struct.pack("<I", start)).shape == (24, 36, 3)


def test_the_canvas_of_a_webp_is_not_made_before_its_size_is_known() -> None:
    """Two gigabytes for a file of 60 bytes: libwebp makes room for an animation when it is opened."""
    claim = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + (16382).to_bytes(3, "little") * 2
    body = b"WEBP" + claim + b"ANIM\6\0\0\0" + bytes(6)
    data = b"RIFF" + struct.pack("<I", len(body)) + body
    assert refusal(data, max_pixels=10**6).startswith("too_large: 16383x16383")


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000), (1, 1)])
@pytest.mark.parametrize("format", FORMATS)
def test_extreme_shapes_are_images(format: str, size: tuple[int, int]) -> None:
    """A stitched strip, or a single pixel, taken for damage; WebP alone cannot be so long."""
    image = Image.new("RGB", size, (9, 90, 200))
    if format == "WebP" and max(size) > 16383:
        pytest.skip("no WebP is as long")
    assert decoded(encoded(image, format)).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("size", [(-5, 4), (5, -4), (0, 4), (2**31 - 1, 2**31 - 1), (-(2**31), 1)])
def test_sizes_of_bmps(size: tuple[int, int]) -> None:
    """A negative height means top-down; all else that is not positive is no size."""
    data = bytearray(encoded(picture(4, 5), "BMP"))
    data[18:26] = struct.pack("<ii", *size)
    if size == (5, -4):
        np.testing.assert_array_equal(decoded(bytes(data)), picture(4, 5)[::-1])
    else:
        assert refusal(bytes(data)).startswith(("undecodable: ", "too_large: ", "truncated: "))


def test_a_wrong_extension_does_not_matter() -> None:
    """A JPEG named .png, refused; the bytes alone say what they are."""
    assert {looks_like_image(encoded(picture(), format)[:32]) for format in FORMATS} == {True}


def test_memory_that_runs_out_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image called damaged because the machine was short of memory."""

    def exhausted(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("pipeline.images._pixels", exhausted)
    assert refusal(encoded(picture(), "PNG")) == "crashed: the decoder ran out of memory"
