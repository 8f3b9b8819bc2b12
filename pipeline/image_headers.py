"""What the headers of images say, read without a decoder: pure, and harmless whatever the bytes are.

A size read here is what the file announces. The decoder may find another one, and is checked too. Nor is a structure
that passes here sound: it only costs a decoder no more time than its bytes and pixels can explain.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

from pipeline.records import Pixels

Size: TypeAlias = tuple[int, int]

#: What no camera and no program comes near, and no decoder is made for: each step of it takes microseconds or more.
MAX_JPEG_SEGMENTS, MAX_JPEG_JUNK, MAX_EXIF_SEGMENTS = 10_000, 1_000_000, 100
#: Progressive JPEGs have about 10 scans. Each goes over all pixels, though it may be of 100 bytes: so there is a limit
#: on their number, and one on the pixels of them all, as a multiple of those of the largest image that is accepted.
MAX_JPEG_SCANS, MAX_SCANNED = 1000, 100
#: The most numbers of a TIFF's entry; of the offsets of tiles and strips, each means a call of the decoder.
MAX_TIFF_ENTRIES, MAX_TIFF_VALUES = 65_535, 1 << 18

_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = frozenset({0xC0, 0xC1, 0xC3})
_START, _END, _SCAN, _APP1 = 0xD8, 0xD9, 0xDA, 0xE1
_BARE = frozenset({0x01, _START, _END})  # markers of segments without a length

_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
#: TIFF types of whole numbers, as `struct` has them; and those whose values are bytes, which are cheap.
_TIFF_NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_TIFF_BYTES = frozenset({1, 2, 6, 7})


class Segment(NamedTuple):
    """A segment of a JPEG: its marker, the bytes that lie before it in no segment, and where its length stands."""

    marker: int
    junk: int
    place: int


class Entry(NamedTuple):
    """An entry of a TIFF directory: its tag, the type and number of its values; the first, if a whole number in it."""

    tag: int
    type: int
    values: int
    first: int | None


def announced_size(data: bytes) -> Size | None:
    """Width and height of a JPEG, PNG, WebP, TIFF or BMP by its header; None where that is damaged or ends early."""
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg_size(data)
        if data.startswith(b"\x89PNG"):
            width, height = struct.unpack_from(">II", data, 16)
            return width, height
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp_size(data)
        if data[:2] in (b"II", b"MM"):
            return _tiff_size(data)
        if data[:2] == b"BM":
            (header,) = struct.unpack_from("<I", data, 14)
            width, height = struct.unpack_from("<HH" if header == 12 else "<ii", data, 18)
            return abs(width), abs(height)
    except struct.error:
        pass
    return None


def reduction(data: bytes, wanted: Callable[[int, int], Size]) -> int:
    """At which part of its size a JPEG can be decoded, so that no side is shorter than wanted: 1, 2, 4 or 8; else 1.

    Which side is which can be told from the result: two sides that differ still do.

    Args:
        data: the encoded image.
        wanted: height and width -> those that are wanted.
    """
    size = announced_size(data) if data.startswith(b"\xff\xd8") else None
    if size is None or not all(size):
        return 1
    width, height = size
    least_height, least_width = wanted(height, width)
    for part in (8, 4, 2):
        reduced = -(-height // part), -(-width // part)
        large_enough = height // part >= least_height and width // part >= least_width
        if large_enough and (height == width or reduced[0] != reduced[1]):
            return part
    return 1


def upright_size(data: bytes, pixels: Pixels, part: int) -> Size:
    """Height and width of an image, turned as its pixels are, which were decoded at a part of its size."""
    shown: Size = pixels.shape[:2]
    width, height = announced_size(data) or (0, 0)
    if shown == (-(-height // part), -(-width // part)):
        return height, width
    if shown == (-(-width // part), -(-height // part)):
        return width, height
    return shown  # it was not reduced, as its decoder found another size than the header announces


def excess(data: bytes, max_pixels: int) -> str | None:
    """What would keep a decoder busy far longer than an image of this size should, in words; None for all others."""
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg_excess(data, max_pixels)
        if data[:2] in (b"II", b"MM"):
            return _tiff_excess(data)
    except struct.error:
        pass
    return None


def _jpeg_segments(data: bytes) -> Iterator[Segment]:
    """The segments of a JPEG, passing over the coded data of its scans; the end of the data counts as one."""
    end = 2
    while found := _JPEG_MARKER.search(data, end):
        marker, place = found[0][1], found.end()
        yield Segment(marker, found.start() - end, place)
        end = place if marker in _BARE else place + max(2, int.from_bytes(data[place : place + 2], "big"))
    yield Segment(_END, len(data) - end, len(data))


def _jpeg_size(data: bytes) -> Size | None:
    for number, segment in enumerate(_jpeg_segments(data)):
        if segment.marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, segment.place + 3)
            return width, height
        if segment.marker == _SCAN or number > MAX_JPEG_SEGMENTS:
            break
    return None


def _jpeg_excess(data: bytes, max_pixels: int) -> str | None:
    width, height = _jpeg_size(data) or (0, 0)
    most_scans = min(MAX_JPEG_SCANS, MAX_SCANNED * max_pixels // max(1, width * height))
    scans = exif = junk = 0
    frame = b""
    for number, segment in enumerate(_jpeg_segments(data), start=1):
        if number > MAX_JPEG_SEGMENTS:
            return f"more than {MAX_JPEG_SEGMENTS} segments"
        content = data[segment.place + 2 : segment.place + 8]
        if segment.marker in _FRAMES:
            frame = bytes([segment.marker]) + content
        elif segment.marker == _SCAN:
            scans += 1
            if frame[:1] and frame[0] in _SEQUENTIAL and content[:1] == frame[6:7]:
                return None  # all components are in this scan, and the decoder reads no other
            if scans > most_scans:
                return f"more than {most_scans} scans of {width}x{height} pixels"
        elif segment.marker == _END and scans:
            return None
        if not scans:  # from here to the first scan, Pillow goes step by step
            junk += segment.junk
            exif += segment.marker == _APP1 and content.startswith(b"Exif")
            if junk > MAX_JPEG_JUNK:
                return f"more than {MAX_JPEG_JUNK} bytes between its segments"
            if exif > MAX_EXIF_SEGMENTS:
                return f"more than {MAX_EXIF_SEGMENTS} segments of EXIF"
    return None


def _webp_size(data: bytes) -> Size | None:
    match data[12:16]:
        case b"VP8X":
            size = data[24:30]
            if len(size) == 6:
                return 1 + int.from_bytes(size[:3], "little"), 1 + int.from_bytes(size[3:], "little")
        case b"VP8L":
            (bits,) = struct.unpack_from("<I", data, 21)
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
    return None


def _tiff_entries(data: bytes) -> Iterator[Entry]:
    """The entries of the first directory of a TIFF, as many as there are bytes for.

    Raises:
        struct.error: it ends before its directory.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    if start >= len(data):
        raise struct.error("no directory")
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    head = struct.Struct(order + ("HHQ" if big else "HHI"))
    width = 8 if big else 4
    step = head.size + width
    first_entry = start + (8 if big else 2)
    for here in range(first_entry, min(first_entry + count * step, len(data) - step + 1), step):
        tag, type_, values = head.unpack_from(data, here)
        form = _TIFF_NUMBERS.get(type_, "")
        inside = values > 0 and 0 < values * struct.calcsize(order + form) <= width
        first = struct.unpack_from(order + form, data, here + head.size)[0] if inside else None
        yield Entry(tag, type_, values, first)


def _tiff_size(data: bytes) -> Size | None:
    size: dict[int, int] = {}
    for number, entry in enumerate(_tiff_entries(data)):
        if entry.tag in (_TIFF_WIDTH, _TIFF_HEIGHT) and entry.first is not None:
            size.setdefault(entry.tag, entry.first)  # as Pillow does: of two, the first counts
        if len(size) == 2:
            return size[_TIFF_WIDTH], size[_TIFF_HEIGHT]
        if number > MAX_TIFF_ENTRIES:
            break
    return None


def _tiff_excess(data: bytes) -> str | None:
    for number, entry in enumerate(_tiff_entries(data)):
        if number > MAX_TIFF_ENTRIES:
            return f"more than {MAX_TIFF_ENTRIES} entries in its directory"
        if entry.values > MAX_TIFF_VALUES and entry.type not in _TIFF_BYTES:
            return f"{entry.values} values of its tag {entry.tag}; accepted are up to {MAX_TIFF_VALUES}"
    return None
