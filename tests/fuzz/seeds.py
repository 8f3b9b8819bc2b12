"""Small valid files of every form that is read, made when they are asked for."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageCms, PngImagePlugin

from tests.fakes import draw


def images() -> dict[str, bytes]:
    """By file name."""
    exif = Image.Exif()
    exif[274], exif[305] = 6, "a camera of some make"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "text " * 30, zip=True)
    text.add_itxt("Title", "a title", zip=True)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    y, x = np.mgrid[:30, :44]
    noise = np.random.default_rng(1).integers(0, 40, (30, 44, 3))
    rgb = Image.fromarray((np.stack([5 * x, 8 * y, 3 * (x + y)], 2) % 216 + noise).astype(np.uint8))
    other, grey = Image.eval(rgb, lambda value: 255 - value), rgb.convert("L")
    deep = Image.fromarray((x * y * 40).astype(np.uint16))
    made: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "plain.jpg": (rgb, "JPEG", {}),
        "progressive.jpg": (rgb, "JPEG", {"progressive": True, "quality": 90, "subsampling": 0}),
        "grey.jpg": (grey, "JPEG", {"optimize": True}),
        "cmyk.jpg": (rgb.convert("CMYK"), "JPEG", {}),
        "camera.jpg": (rgb, "JPEG", {"exif": exif, "icc_profile": profile, "comment": b"words", "dpi": (72, 72)}),
        "restart.jpg": (rgb, "JPEG", {"restart_marker_blocks": 2}),
        "plain.png": (rgb, "PNG", {}),
        "palette.png": (rgb.quantize(20), "PNG", {"transparency": bytes(range(20))}),
        "alpha.png": (rgb.convert("RGBA"), "PNG", {"exif": exif, "icc_profile": profile, "pnginfo": text}),
        "deep.png": (deep, "PNG", {}),
        "bits.png": (grey.convert("1"), "PNG", {}),
        "moving.png": (rgb, "PNG", {"save_all": True, "append_images": [other], "duration": 9}),
        "lossy.webp": (rgb, "WEBP", {"exif": exif}),
        "lossless.webp": (rgb.convert("RGBA"), "WEBP", {"lossless": True, "icc_profile": profile}),
        "moving.webp": (rgb, "WEBP", {"save_all": True, "append_images": [other]}),
        "plain.tif": (rgb, "TIFF", {"exif": exif}),
        "lzw.tif": (rgb, "TIFF", {"compression": "tiff_lzw"}),
        "deflate.tif": (deep, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "jpeg.tif": (rgb, "TIFF", {"compression": "jpeg"}),
        "packed.tif": (rgb.quantize(9), "TIFF", {"compression": "packbits"}),
        "fax.tif": (grey.convert("1"), "TIFF", {"compression": "group4"}),
        "pages.tif": (rgb, "TIFF", {"save_all": True, "append_images": [other]}),
        "big.tif": (rgb, "TIFF", {"big_tiff": True}),
        "cmyk.tif": (rgb.convert("CMYK"), "TIFF", {}),
        "plain.bmp": (rgb, "BMP", {}),
        "palette.bmp": (rgb.quantize(9), "BMP", {}),
        "bits.bmp": (grey.convert("1"), "BMP", {}),
        "alpha.bmp": (rgb.convert("RGBA"), "BMP", {}),
        "moving.gif": (rgb, "GIF", {"save_all": True, "append_images": [other]}),
    }
    files = {}
    for name, (image, format, options) in made.items():
        stream = io.BytesIO()
        image.save(stream, format, **options)
        files[name] = stream.getvalue()
    packed = b"\x14\1\0\4\2\3\4\5\x14\7\0\0" * 30 + b"\0\1"  # two runs about four values, 30 lines long
    size = (44).to_bytes(4, "little") + (30).to_bytes(4, "little")
    files["runs.bmp"] = (
        b"BM" + (1078 + len(packed)).to_bytes(4, "little") + bytes(4) + (1078).to_bytes(4, "little")
        + (40).to_bytes(4, "little") + size + b"\1\0\x08\0\1\0\0\0" + len(packed).to_bytes(4, "little") + bytes(16)
        + bytes(1024) + packed
    )  # fmt: skip
    return files


def tars() -> dict[str, bytes]:
    """By file name; each holds images and other members."""
    files = {"a.png": draw(1), "a.json": b'{"label": 1}', "b.jpg": images()["plain.jpg"], "sub/c.png": draw(2)}
    link, hole = tarfile.TarInfo("link.jpg"), tarfile.TarInfo("hole.png")
    link.type, link.linkname = tarfile.SYMTYPE, "a.png"
    holes = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "700", "GNU.sparse.name": "h.png"}
    hole.pax_headers = holes
    members: list[tuple[tarfile.TarInfo, bytes]] = [
        *((tarfile.TarInfo(name), data) for name, data in files.items()),
        (tarfile.TarInfo("folder/" * 30 + "long.png"), draw(3)),
    ]
    plain, gnu, pax = (
        _tar([*members, (link, b"")], format)
        for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    )
    sparse_map = b"1\n0\n512\n"
    sparse = _tar([(hole, sparse_map + bytes(512 - len(sparse_map)) + draw(4)[:512]), *members], tarfile.PAX_FORMAT)
    return {"ustar.tar": plain, "gnu.tar": gnu, "pax.tar": pax, "sparse.tar": sparse}


def parquets() -> dict[str, bytes]:
    """By file name."""
    data = [draw(number) for number in range(6)] + [None]
    keys = [f"{number}.png" for number in range(7)]
    structs = [{"bytes": one, "path": key} for one, key in zip(data, keys, strict=True)]
    tables: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "plain.parquet": ({"image": data, "key": keys}, {"compression": "none"}),
        "zstd.parquet": ({"image": data, "key": keys}, {"compression": "zstd", "row_group_size": 2}),
        "snappy.parquet": ({"image": structs}, {"compression": "snappy", "data_page_version": "2.0"}),
        "gzip.parquet": ({"image": data, "n": list(range(7))}, {"compression": "gzip", "use_dictionary": False}),
        "large.parquet": ({"image": pa.array(data, pa.large_binary()), "key": keys}, {"write_page_index": True}),
        "coded.parquet": ({"image": pa.array(data).dictionary_encode()}, {"write_page_checksum": True}),
        "places.parquet": ({"path": ["a.png", "../a.png", None, "", "s3://", "\0", "a" * 300]}, {}),
    }
    files = {}
    for name, (columns, options) in tables.items():
        stream = io.BytesIO()
        pq.write_table(pa.table(columns), stream, **options)
        files[name] = stream.getvalue()
    return files


def cocos() -> dict[str, bytes]:
    """By file name; of images `a.png` and `b.png` beside them."""
    document = {
        "info": {"year": 2020},
        "images": [{"id": 1, "file_name": "a.png", "width": 48, "height": 32}, {"id": 2, "file_name": "b.png"}],
        "annotations": [{"id": 1, "image_id": 1, "bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 3, 4, 5, 6]]}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    text = json.dumps(document)
    return {"plain.json": text.encode(), "marked.json": text.encode("utf-8-sig"), "wide.json": text.encode("utf-16")}


def packed(data: bytes) -> bytes:
    """As a gzip, the same each time."""
    return gzip.compress(data, mtime=0)


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """A plain archive."""
    return _tar([(tarfile.TarInfo(name), data) for name, data in files.items()], tarfile.USTAR_FORMAT)


def _tar(members: Iterable[tuple[tarfile.TarInfo, bytes]], format: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()
