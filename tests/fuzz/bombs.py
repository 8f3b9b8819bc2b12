"""Files of a few kilobytes that cost their reader hours or gigabytes, if it lets them."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Iterable

from PIL import Image


def small_jpeg() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 48), (200, 0, 0)).save(stream, "JPEG")
    return stream.getvalue()


def jpeg_with(*segments: bytes) -> bytes:
    """A small JPEG with more segments at its beginning."""
    data = small_jpeg()
    return data[:2] + b"".join(segments) + data[2:]


def segment(marker: int, content: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", 2 + len(content)) + content


def progressive(width: int, height: int, scans: int) -> bytes:
    """A grey JPEG whose every scan refines nothing, in a few bytes: all blocks are skipped, but each is looked at."""
    blocks = -(-width // 8) * -(-height // 8)
    runs = "0" + "1" * 14  # the only code, for a run of 2^14 blocks and as many as the 14 bits say
    bits = runs * (blocks // 32767 + 1)
    coded = int(bits + "0" * (-len(bits) % 8), 2).to_bytes(-(-len(bits) // 8), "big").replace(b"\xff", b"\xff\0")
    tables = segment(0xDB, b"\0" + b"\1" * 64), segment(0xC4, b"\0\1" + bytes(15) + b"\0")
    frame = segment(0xC2, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0")
    first = segment(0xDA, b"\1\1\0\0\0\0") + bytes(-(-blocks // 8))
    table = segment(0xC4, b"\x10\1" + bytes(15) + b"\xe0")
    one, again = (segment(0xDA, b"\1\1\0\1\x3f" + step) + coded for step in (b"\0", b"\x10"))
    return b"\xff\xd8" + tables[0] + frame + tables[1] + first + table + one + again * (scans - 2) + b"\xff\xd9"


def tiff(tags: Iterable[tuple[int, int, int, int]], rest: bytes) -> bytes:
    """Entries (tag, type, count, value) of a directory, and what follows it."""
    entries = [struct.pack("<HHII", *one) for one in sorted(tags)]
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4) + rest


def tiles(count: int) -> bytes:
    """A TIFF of 1x1 tiles."""
    size = [(256, 4, 1, count), (257, 4, 1, 1), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tile = [(322, 4, 1, 1), (323, 4, 1, 1), (324, 4, count, 200), (325, 4, count, 200)]
    return tiff([*size, *tile], bytes(4 * count + 100))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*chunks: bytes, width: int = 64, height: int = 48) -> bytes:
    """A PNG with more chunks before its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes((3 * width + 1) * height)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def exif(entries: int, size: int) -> bytes:
    """EXIF data whose every entry claims all of it as its value."""
    directory = b"".join(struct.pack("<HHII", 40000 + number, 7, size, 8) for number in range(entries))
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", entries) + directory + bytes(4)).ljust(size, b"\0")


def bmp(width: int, height: int, runs: bytes) -> bytes:
    """A BMP of 8 bits and run lengths."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(runs), 0, 0, 1078) + header + bytes(1024) + runs


def member(name: str, data: bytes = b"", *, type: bytes = tarfile.REGTYPE, size: int | None = None) -> bytes:
    """A tar member, which may announce another size than it has."""
    info = tarfile.TarInfo(name)
    info.type, info.size = type, len(data) if size is None else size
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def pax(*records: tuple[str, str], type: bytes = tarfile.XHDTYPE) -> bytes:
    """A pax header."""
    body = b""
    for key, value in records:
        text = f" {key}={value}\n".encode()
        length = len(text)
        while length != len(text) + len(str(length)):
            length = len(text) + len(str(length))
        body += str(length).encode() + text
    return member("pax", body, type=type)
