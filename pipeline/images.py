"""Bytes to pixels: pure, with limits, and with one sentence for whatever cannot be used.

Pillow decodes. Its format classes are called directly rather than through `Image.open`, so that only the five accepted
formats ever see untrusted bytes, and so that the size limit is this module's: `Image.open` has a global one of its own,
and warns through filters that threads share.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pipeline.errors import ImageError
from pipeline.image_headers import announced_size, excess
from pipeline.records import Pixels

ACCEPTED = "JPEG, PNG, WebP, TIFF, BMP"

#: What Pillow raises on damaged bytes. It also warns about damaged metadata: `Warning` is here for programs that turn
#: warnings into errors.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,  # also UnicodeDecodeError
    TypeError,
    LookupError,  # IndexError, KeyError
    ArithmeticError,  # OverflowError, ZeroDivisionError
    AttributeError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    Warning,
)

_DECODERS: Mapping[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WebP": WebPImageFile,
    "TIFF": TiffImageFile,
    "BMP": BmpImageFile,
}

_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}

#: Images, but of formats that are not accepted: (offset, bytes there, name).
_OTHERS = (
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (4, b"ftyphe", "HEIF"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypmsf1", "HEIF"),
    (4, b"jP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"JXL \r\n\x87\n", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"DDS ", "DDS"),
    (0, b"qoif", "QOI"),
)

#: Sizes of the header that follows the 14 bytes of a BMP's file header; "BM" alone is how a text may begin.
_BMP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})

_ORIENTATION = 274
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT = 258, 262, 322, 323


def looks_like_image(head: bytes) -> bool:
    """Whether the first 32 bytes of a file are those of an image, accepted or not."""
    return _format(head) is not None or _other(head) is not None


def decode(data: bytes, *, max_bytes: int, max_pixels: int, reduce: int = 1) -> Pixels:
    """The picture as detectron2's `read_image(format="RGB")` gives it, upright by its EXIF orientation.

    Grey, palette and CMYK become RGB; alpha is dropped; colour profiles are ignored; of several frames the first
    counts. Two things differ from detectron2, whose result would be no picture: 16-bit grey is scaled to 8 bits rather
    than clipped, and an oriented TIFF, which Pillow turns by itself, is not turned a second time. Samples of 32 bits
    (integer or floating point) are refused, since nothing in the file says which value is white.

    Pillow's guard stays in force for WebP and TIFF: above 178,956,970 pixels they are too large, whatever `max_pixels`.

    Args:
        data: the encoded image.
        max_bytes: the most bytes that are looked at (limits.max_image_bytes).
        max_pixels: the most pixels, by the size in the header (limits.max_image_pixels); checked before any is decoded.
        reduce: 1, 2, 4 or 8; a JPEG is decoded at this part of its height and width, rounded up, as its blocks of 8
            pixels can be. Other formats come as they are.

    Returns:
        uint8 [H, W, 3], RGB, writable.

    Raises:
        ImageError: `reason: detail`, with `reason` one of `records.REASONS`.
    """
    if not data:
        raise ImageError("empty: 0 bytes")
    if len(data) > max_bytes:
        raise ImageError(f"too_large: {len(data)} bytes, over limits.max_image_bytes = {max_bytes}")
    kind = _format(data)
    if kind is None:
        if other := _other(data):
            raise ImageError(f"unsupported: {other}; accepted are {ACCEPTED}")
        raise ImageError(f"not_an_image: the bytes begin with {data[:16]!r}; accepted are {ACCEPTED}")
    try:
        # Before any decoder: Pillow reads a PNG as far as the pixels, and makes the canvas of a WebP, to tell the size.
        _check_size(announced_size(data) or (0, 0), max_pixels)
        if absurd := excess(data, max_pixels):
            raise ImageError(f"undecodable: {kind}: {absurd}")
        image = _DECODERS[kind](io.BytesIO(data))
        _check_size(image.size, max_pixels)
        if isinstance(image, TiffImageFile):  # a tile is decoded whole, however little of it the image needs
            tile = image.tag_v2.get(_TIFF_TILE_WIDTH, 0), image.tag_v2.get(_TIFF_TILE_HEIGHT, 0)
            _check_size(tile, max_pixels)
        if reduce > 1 and image.size == announced_size(data):
            image.draft(None, (image.width // reduce, image.height // reduce))
        return _pixels(image, kind)
    except Image.DecompressionBombError:
        raise ImageError(f"too_large: {kind} of more pixels than Pillow decodes") from None
    except DAMAGE as error:
        if isinstance(error, MemoryError) or "out of memory" in str(error):
            raise ImageError("crashed: the decoder ran out of memory") from error
        if _ends_early(data, kind) or "truncated" in str(error).lower():
            raise ImageError(f"truncated: the {kind} data end before the image does") from error
        detail = str(error).partition("\n")[0][:100] or type(error).__name__
        raise ImageError(f"undecodable: {kind}: {detail}") from error


def _format(data: bytes) -> str | None:
    """Which of the accepted formats the first bytes announce."""
    for signature, name in _SIGNATURES.items():
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return None


def _other(data: bytes) -> str | None:
    return next((name for offset, magic, name in _OTHERS if data.startswith(magic, offset)), None)


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(
            f"too_large: {width}x{height} is {width * height} pixels, over limits.max_image_pixels = {max_pixels}"
        )


def _pixels(image: ImageFile.ImageFile, kind: str) -> Pixels:
    """The decoded image, upright, as [H, W, 3]."""
    # First of all, because it turns a TIFF and then forgets its orientation; and because reading the metadata of a PNG
    # would load it too, where a failure would pass for absurd metadata.
    image.load()
    upright: Image.Image = image
    if (turn := _TURNS.get(_orientation(image))) is not None:
        upright = image.transpose(turn)
    if upright.mode.startswith("I;16"):
        return _from_grey16(upright, image)
    if upright.mode in ("I", "F", "LAB"):
        samples = {"I": "signed or 32-bit integer samples", "F": "floating-point samples", "LAB": "Lab colours"}
        raise ImageError(f"unsupported: {kind} of {samples[upright.mode]}; accepted are 8 and 16 bits, grey or RGB")
    if upright.mode != "RGB":
        # Converting would carry a transparent palette entry over, which takes time and may warn or fail.
        upright.info.pop("transparency", None)
        upright = upright.convert("RGB")
    return np.array(upright)


def _orientation(image: ImageFile.ImageFile) -> int:
    """The EXIF (or XMP) orientation, 1 to 8; 1 where the metadata are absent, damaged or absurd."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except DAMAGE:
        return 1
    return value if isinstance(value, int) else 1


def _from_grey16(image: Image.Image, source: ImageFile.ImageFile) -> Pixels:
    """Grey of up to 16 bits, scaled so that full scale becomes 255, in three equal channels."""
    values = np.asarray(image).astype(np.uint32)
    white = 65535
    if isinstance(source, TiffImageFile):
        white = (1 << source.tag_v2.get(_TIFF_BITS, (16,))[0]) - 1
        if source.tag_v2.get(_TIFF_PHOTOMETRIC) == 0:  # "white is zero", which Pillow heeds for 8 bits only
            values = white - np.minimum(values, white)
    grey = (values * 255 + white // 2) // white
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)


def _ends_early(data: bytes, kind: str) -> bool:
    """Whether the file ends before its own structure says that it does. Asked only of a file that failed to decode."""
    match kind:
        case "JPEG":
            return not data.rstrip(b"\0").endswith(b"\xff\xd9")
        case "PNG":
            return b"IEND" not in data
        case "WebP":
            return int.from_bytes(data[4:8], "little") + 8 > len(data)
        case "BMP":
            return int.from_bytes(data[2:6], "little") > len(data)
        case _:  # TIFF: where its first directory is
            return int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big") + 2 > len(data)
