"""Shards to records: every form that images come in, and every way in which a shard is not what it should be."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Mapping
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.errors import AccessError, ShardError, UnreachableError, UserError
from pipeline.plan import plan
from pipeline.records import REASONS, ImageRecord, Shard, ShardFormat
from pipeline.sources import SOURCES, ReadOptions
from pipeline.sources.coco import coco_images
from pipeline.sources.common import resolve
from pipeline.sources.listings import Listed, to_line
from pipeline.store import Patience, Store, join
from tests.fuzz import bombs

OPTIONS = ReadOptions(max_image_bytes=100_000)
BLOCK = tarfile.BLOCKSIZE


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def image(number: int, format: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 9, 3), np.uint8)).save(stream, format)
    return stream.getvalue()


IMAGES = {f"{folder}/{number:03d}.jpg": image(number) for folder in ("cats", "dogs") for number in range(5)}


def tarred(members: Iterable[tuple[str | tarfile.TarInfo, bytes]], **options: Any) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as archive:
        for member, data in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = info.size or len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def shard_at(uri: str, format: ShardFormat, store: Store) -> Shard:
    info = store.stat(uri)
    return Shard(id="0" * 20, uri=uri, format=format, bytes=info.bytes, etag=info.etag, number=0)


def read(shard: Shard, store: Store, options: ReadOptions = OPTIONS) -> dict[str, ImageRecord]:
    records = list(SOURCES[shard.format](shard, store=store, options=options))
    by_key = {record.key: record for record in records}
    assert len(by_key) == len(records)
    for record in records:
        assert bool(record.data) == (record.error is None)
        assert record.error is None or record.error.partition(": ")[0] in REASONS
    return by_key


def contents(records: Mapping[str, ImageRecord]) -> dict[str, bytes]:
    return {key: record.data for key, record in records.items()}


@pytest.fixture
def read_tar(tmp_path: Path, store: Store) -> Callable[..., dict[str, ImageRecord]]:
    def read_bytes(data: bytes, options: ReadOptions = OPTIONS) -> dict[str, ImageRecord]:
        path = tmp_path / "shard.tar"
        path.write_bytes(data)
        return read(shard_at(str(path), "tar", store), store, options)

    return read_bytes


@pytest.fixture
def read_table(tmp_path: Path, store: Store) -> Callable[..., dict[str, ImageRecord]]:
    def read_columns(columns: Mapping[str, Any], options: ReadOptions = OPTIONS) -> dict[str, ImageRecord]:
        path = tmp_path / "shard.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=3)
        return read(shard_at(str(path), "parquet", store), store, options)

    return read_columns


def packed(images: Mapping[str, bytes], place: str, store: Store) -> dict[str, tuple[str, str]]:
    """The same images in the four forms: (URI, format) by name."""
    for key, data in images.items():
        store.put(join(place, "prefix", key), data)
    store.put(join(place, "shard.tar"), tarred(images.items()))
    store.put(join(place, "shard.tar.gz"), gzip.compress(tarred(images.items())))
    stream = io.BytesIO()
    pq.write_table(pa.table({"file_name": list(images), "image": list(images.values())}), stream)
    store.put(join(place, "shard.parquet"), stream.getvalue())
    coco = {"images": [{"id": 7 * n, "file_name": key} for n, key in enumerate(images)], "annotations": []}
    store.put(join(place, "annotations", "instances_prefix.json"), json.dumps(coco).encode())
    return {
        "tar": (join(place, "shard.tar"), "tar"),
        "tar.gz": (join(place, "shard.tar.gz"), "tar"),
        "parquet": (join(place, "shard.parquet"), "parquet"),
        "images": (join(place, "prefix"), "images"),
        "glob": (join(place, "prefix", "*", "*.jpg"), "images"),
        "coco": (join(place, "annotations", "instances_prefix.json"), "coco"),
    }


def planned_and_read(uri: str, format: Any, run: str, store: Store) -> dict[str, bytes]:
    records: dict[str, bytes] = {}
    for planned in plan([uri], format=format, images_per_shard=4, store=store):
        if planned.listing is not None:
            store.put(join(run, planned.shard.uri), planned.listing)
        options = ReadOptions(max_image_bytes=10**7, run_uri=run)
        records |= contents(read(planned.shard, store, options))
    return records


@pytest.mark.parametrize("auto", [False, True])
def test_all_forms_give_the_same_images(auto: bool, place: str, store: Store) -> None:
    """Labels that hang on how the images were packed, or that cannot be joined by their keys."""
    for name, (uri, format) in packed(IMAGES, place, store).items():
        read_images = planned_and_read(uri, "auto" if auto else format, join(place, "run"), store)
        assert read_images == IMAGES, name


def test_real_images_come_unchanged_from_all_forms(shared_data: Path, tmp_path: Path, store: Store) -> None:
    """Sizes of real photos (over several buffers and pages) that the small ones of other tests do not have."""
    paths = sorted((shared_data / "coco-mini" / "val").glob("*.jpg"))[::8]
    images = {path.name: path.read_bytes() for path in paths}
    assert images
    for name, (uri, format) in packed(images, str(tmp_path), store).items():
        if name != "glob":
            assert planned_and_read(uri, format, str(tmp_path / "run"), store) == images, name


def test_coco_ids_stay(tmp_path: Path, store: Store) -> None:
    """COCO results that no longer match the ids of the data set."""
    uri, _ = packed(IMAGES, str(tmp_path), store)["coco"]
    (planned,) = plan([uri], format="coco", images_per_shard=100, store=store)
    assert planned.listing is not None
    store.put(str(tmp_path / "run" / planned.shard.uri), planned.listing)
    options = ReadOptions(max_image_bytes=10**6, run_uri=str(tmp_path / "run"))
    ids = [record.image_id for record in read(planned.shard, store, options).values()]
    assert ids == [7 * number for number in range(10)]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_dialect_is_read(format: int, read_tar: Callable[..., dict[str, ImageRecord]]) -> None:
    """Names cut to 100 characters, or an extended header taken for a member."""
    names = ["a.jpg", "./b.png", "deep/" * 19 + "long name.jpg", "../up.jpg", "/root.jpg"]
    if format != tarfile.USTAR_FORMAT:
        names += ["very " * 60 + "long.jpg", "Küche 猫.jpg"]
    records = read_tar(tarred([(name, image(n)) for n, name in enumerate(names)], format=format))
    assert contents(records) == {name.removeprefix("./"): image(n) for n, name in enumerate(names)}


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs the tar command")
@pytest.mark.parametrize(
    "options", [["-cf"], ["-czf"], ["--format=posix", "-cf"], ["--format=v7", "-cf"], ["-b1", "-cf"]]
)
def test_archives_of_the_tar_command_are_read(options: list[str], tmp_path: Path, store: Store) -> None:
    """A reader that knows only what Python writes: directories, "./" and padding come with the command."""
    for key, data in IMAGES.items():
        store.put(str(tmp_path / "in" / key), data)
    path = tmp_path / "shard.tar"
    subprocess.run(["tar", *options, path, "-C", tmp_path / "in", "."], check=True)
    assert contents(read(shard_at(str(path), "tar", store), store)) == IMAGES


def test_sidecars_are_passed_over_wherever_they_stand(read_tar: Callable[..., dict[str, ImageRecord]]) -> None:
    """Samples torn apart, or lost, because their members are not together."""
    members = [
        ("1.json", b'{"jpg": 1}'),
        ("2.jpg", image(2)),
        ("1.cls", b"7"),
        ("3.txt", b"a dog"),
        ("1.JPG", image(1)),
        ("2.json", b"{}"),
        ("._1.JPG", b"\0\5\x16\7 a fork that macOS adds"),
        ("4.npy", b"\x93NUMPY"),
        ("empty", b""),
        ("3.png", image(3, "PNG")),
        ("2.cls", b"8"),
    ]
    assert contents(read_tar(tarred(members))) == {"2.jpg": image(2), "1.JPG": image(1), "3.png": image(3, "PNG")}


def test_images_without_an_extension_are_found(read_tar: Callable[..., dict[str, ImageRecord]]) -> None:
    """A set whose files are named by a hash alone, labelled as if it were empty."""
    members = [("0f3a", image(1)), ("0f3b.orig", image(2, "PNG")), ("note", b"no image"), ("0f3c", image(3, "GIF"))]
    assert list(read_tar(tarred(members))) == ["0f3a", "0f3b.orig", "0f3c"]


def test_nothing_vanishes_in_silence(read_tar: Callable[..., dict[str, ImageRecord]]) -> None:
    """Images that are in no row and no count: links, empty files, second copies, formats that are not decoded."""
    link, hard, pipe, folder = (tarfile.TarInfo(name) for name in ("link.jpg", "hard.jpg", "pipe.jpg", "folder.jpg"))
    link.type, link.linkname, hard.type, hard.linkname = tarfile.SYMTYPE, "1.jpg", tarfile.LNKTYPE, "1.jpg"
    pipe.type, folder.type = tarfile.FIFOTYPE, tarfile.DIRTYPE
    members = [("1.jpg", image(1)), (link, b""), (hard, b""), (pipe, b""), (folder, b""), ("2.jpg", b"")]
    members += [("1.jpg", image(3)), ("4.gif", b"GIF89a"), ("1.jpg", image(5)), ("6.heic", b"x")]
    records = read_tar(tarred(members))
    assert {key: record.error for key, record in records.items()} == {
        "1.jpg": None,
        "link.jpg": "unreadable: a link to 1.jpg; only files are read",
        "hard.jpg": "unreadable: a link to 1.jpg; only files are read",
        "pipe.jpg": "unreadable: a device or a pipe; only files are read",
        "2.jpg": "empty: 0 bytes",
        "1.jpg#2": "duplicate: a second image of the key '1.jpg'",
        "4.gif": None,
        "1.jpg#3": "duplicate: a second image of the key '1.jpg'",
        "6.heic": None,
    }
    assert records["1.jpg"].data == image(1)


def test_large_members_are_not_read(tmp_path: Path, store: Store) -> None:
    """A member of many gigabytes that ends the worker by its memory."""
    size = 64 << 20
    path = tmp_path / "shard.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        huge = tarfile.TarInfo("huge.jpg")
        huge.size = size
        first = tarred([("1.jpg", image(1))]).rstrip(b"\0")
        stream.write(first + bytes(-len(first) % BLOCK) + huge.tobuf())
        for _ in range(64):
            stream.write(bytes(size // 64))
        stream.write(tarred([("2.jpg", image(2))]))
    shard = shard_at(str(path), "tar", store)
    tracemalloc.start()
    try:
        records = read(shard, store)
        assert tracemalloc.get_traced_memory()[1] < size // 8
    finally:
        tracemalloc.stop()
    assert records["huge.jpg"].error == f"too_large: {size} bytes, over limits.max_image_bytes = 100000"
    assert contents(records) == {"1.jpg": image(1), "huge.jpg": b"", "2.jpg": image(2)}


def test_a_tar_is_streamed(tmp_path: Path, store: Store) -> None:
    """Memory that grows with the shard."""
    path = tmp_path / "shard.tar"
    images = [(f"{number}.jpg", os.urandom(90_000)) for number in range(100)]
    sidecars = [(f"{number}.txt", b"") for number in range(4000)]
    path.write_bytes(tarred(images + sidecars))
    shard = shard_at(str(path), "tar", store)
    tracemalloc.start()
    try:
        assert sum(len(record.data) for record in SOURCES["tar"](shard, store=store, options=OPTIONS)) == 100 * 90_000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def refused(read_bytes: Callable[[], object]) -> str:
    with pytest.raises(ShardError) as caught:
        read_bytes()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_cut_tar_is_refused_wherever_it_is_cut(read_tar: Callable[..., dict[str, ImageRecord]]) -> None:
    """A half-copied shard committed as whole: `tarfile` ends in silence at a boundary, or within a header."""
    whole = tarred([(f"{n}.jpg", image(n)) for n in range(3)])
    end = len(whole.rstrip(b"\0"))
    end += -end % BLOCK
    for cut in [*range(BLOCK // 2, end, BLOCK // 2), end - 1, end]:
        assert "shard.tar" in refused(lambda cut=cut: read_tar(whole[:cut])), cut
    assert len(read_tar(whole[: end + BLOCK])) == 3
    assert refused(lambda: read_tar(whole[:end])).endswith(
        "shard.tar is damaged after its member '2.jpg': it ends without the end-of-archive mark; "
        "accepted are .tar, .tar.gz and .tgz."
    )


@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_a_cut_gzip_is_refused(part: float, read_tar: Callable[..., dict[str, ImageRecord]]) -> None:
    """The same for .tar.gz, also where only the checksum is missing."""
    data = gzip.compress(tarred(IMAGES.items()))
    refused(lambda: read_tar(data[: int(len(data) * part)]))
    refused(lambda: read_tar(data[:-1]))


def test_a_damaged_tar_names_the_last_good_member(read_tar: Callable[..., dict[str, ImageRecord]]) -> None:
    """Half a shard committed, or a user who has to look for the damage himself."""
    whole = tarred([(f"{n}.jpg", image(n)) for n in range(3)])
    data = bytearray(whole)
    data[whole.index(b"2.jpg")] ^= 1  # its header's checksum no longer fits
    assert "is damaged after its member '1.jpg': bad checksum" in refused(lambda: read_tar(bytes(data)))


def test_a_gzip_with_a_wrong_checksum_is_refused(read_tar: Callable[..., dict[str, ImageRecord]]) -> None:
    """Flipped bits in an archive that happens to be read to its end."""
    data = bytearray(gzip.compress(tarred(IMAGES.items()), compresslevel=0))
    data[data.index(image(3)) + 100] ^= 1
    assert "CRC" in refused(lambda: read_tar(bytes(data)))


def test_what_is_no_tar_is_refused(read_tar: Callable[..., dict[str, ImageRecord]]) -> None:
    """A traceback for a wrong file, or an empty commit."""
    for data in (b"", b"short", b"no archive at all" * 100, image(1) * 10, gzip.compress(b"text" * 500)):
        assert "shard.tar is no tar archive: " in refused(lambda data=data: read_tar(data))
    assert refused(lambda: read_tar(tarred([]))).endswith("holds no image.")
    assert refused(lambda: read_tar(tarred([("a.json", b"{}")]))).endswith("holds no image.")


def test_a_second_archive_is_not_lost_in_silence(read_tar: Callable[..., dict[str, ImageRecord]]) -> None:
    """`cat a.tar b.tar`, of which the tar tools read only the first."""
    one, two = tarred([("1.jpg", image(1))]), tarred([("2.jpg", image(2))])
    assert "more follows its end-of-archive mark" in refused(lambda: read_tar(one + two))
    assert "more follows its end-of-archive mark" in refused(lambda: read_tar(gzip.compress(one) + gzip.compress(two)))


@pytest.mark.parametrize("type_", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_cannot_ask_for_memory(type_: bytes, read_tar: Callable[..., dict[str, ImageRecord]]) -> None:
    """A forged long name of eight gigabytes, which `tarfile` reads into memory."""
    forged = tarfile.TarInfo("name")
    forged.type, forged.size = type_, 8 << 30
    data = tarred([("1.jpg", image(1))])[: 3 * BLOCK] + forged.tobuf(tarfile.GNU_FORMAT) + bytes(BLOCK)
    assert "a header announces 8589934592 bytes" in refused(lambda: read_tar(data))


def test_names_that_are_no_unicode_can_be_written_down(read_tar: Callable[..., dict[str, ImageRecord]]) -> None:
    """A name in Latin-1 that fails much later, when the row is written."""
    name = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    records = read_tar(tarred([(name, image(1))], format=tarfile.GNU_FORMAT, errors="surrogateescape"))
    assert contents(records) == {"caf\\udce9.jpg": image(1)}
    pa.array([record.key for record in records.values()])


@pytest.mark.parametrize("format", ["tar", "parquet"])
def test_a_shard_that_vanished_or_changed_is_refused(format: ShardFormat, tmp_path: Path, store: Store) -> None:
    """Another content committed under the name of the planned one."""
    path = tmp_path / f"shard.{format}"
    path.write_bytes(b"as it was planned")
    shard = shard_at(str(path), format, store)
    path.write_bytes(b"something else now")
    assert "was replaced since it was planned" in refused(lambda: read(shard, store))
    path.unlink()
    assert f"shard.{format}" in refused(lambda: read(shard, store))


def test_an_unreachable_store_is_no_fault_of_the_shard(
    s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every shard of a run reported as damaged because the network was down."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = Store(Patience(attempts=1, connect_s=1.0, read_s=1.0))
    for format in ("tar", "parquet", "listing"):
        shard = Shard(id="0" * 20, uri="s3://bucket/x", format=format, bytes=1, etag="e", number=0)
        options = ReadOptions(max_image_bytes=1, run_uri="s3://bucket" if format == "listing" else "")
        with pytest.raises(UnreachableError):
            list(SOURCES[format](shard, store=store, options=options))


@pytest.mark.parametrize(
    "type_",
    [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())],
    ids=str,
)
def test_parquet_of_bytes(type_: pa.DataType, read_table: Callable[..., dict[str, ImageRecord]]) -> None:
    """A column type of another writer (pandas, Polars, Arrow) refused."""
    column = pa.array(list(IMAGES.values()), pa.binary()).cast(type_)
    assert contents(read_table({"id": list(range(10)), "jpg": column})) == {
        str(number): data for number, data in enumerate(IMAGES.values())
    }


def test_parquet_without_keys_counts_its_rows(read_table: Callable[..., dict[str, ImageRecord]]) -> None:
    """Rows of several batches and row groups under the same keys."""
    many = [image(number % 7) for number in range(40)]
    assert contents(read_table({"image": many})) == {str(number): data for number, data in enumerate(many)}


def test_parquet_of_hugging_face(read_table: Callable[..., dict[str, ImageRecord]], tmp_path: Path) -> None:
    """A data set of the `datasets` library: bytes and path in one column, some rows with a path alone."""
    (tmp_path / "beside.jpg").write_bytes(image(4))
    rows = [
        {"bytes": image(1), "path": "1.jpg"},
        {"bytes": image(2), "path": None},
        {"bytes": None, "path": "gone.jpg"},
        {"bytes": None, "path": "beside.jpg"},
        None,
    ]
    type_ = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    records = read_table({"id": ["a", "b", "c", "d", "e"], "image": pa.array(rows, type_)})
    assert contents(records) == {"1.jpg": image(1), "b": image(2), "gone.jpg": b"", "beside.jpg": image(4), "e": b""}
    assert records["gone.jpg"].error is not None
    assert records["gone.jpg"].error.startswith("missing: ")
    assert records["e"].error == "empty: no value in the column 'image'"
    named = ReadOptions(max_image_bytes=10**6, key_column="id")
    assert list(read_table({"id": ["a"], "image": pa.array(rows[:1], type_)}, named)) == ["a"]


def test_parquet_of_uris(read_table: Callable[..., dict[str, ImageRecord]], tmp_path: Path) -> None:
    """URIs looked for in the working directory of a worker rather than beside the file."""
    uris = [
        str(tmp_path / "images" / "0.jpg"),
        "images/1.jpg",
        f"file://{tmp_path}/images/2.jpg",
        None,
        "images/none.jpg",
        "no scheme://x",
    ]
    (tmp_path / "images").mkdir()
    for number in range(3):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(image(number))
    records = read_table({"url": uris, "width": list(range(6))})
    assert [record.data for record in records.values()] == [image(0), image(1), image(2), b"", b"", b""]
    assert records[uris[1]].uri == str(tmp_path / "images" / "1.jpg")
    errors = [(record.error or "").partition(": ")[0] for record in records.values()]
    assert errors == ["", "", "", "empty", "missing", "unreadable"]


def test_parquet_columns_that_the_user_names(read_table: Callable[..., dict[str, ImageRecord]]) -> None:
    """A configured column overruled by one with a usual name."""
    columns = {"image": [b"thumbnail", b"thumbnail"], "full": [image(1), image(2)], "key": ["k", "l"], "sku": [7, None]}
    named = ReadOptions(max_image_bytes=10**6, image_column="full", key_column="sku")
    assert contents(read_table(columns, named)) == {"7": image(1), "1": image(2)}
    wrong = ReadOptions(max_image_bytes=10**6, image_column="picture")
    message = refused(lambda: read_table(columns, wrong))
    assert "has no column 'picture', which input.image_column names; it has image (binary), full (binary)" in message


def test_parquet_without_images_is_refused(read_table: Callable[..., dict[str, ImageRecord]]) -> None:
    """A table of something else, labelled as a shard without images."""
    message = refused(lambda: read_table({"text": ["a"], "image": [3]}))
    assert "has text (string), image (int64), and none of these is known to hold images" in message
    assert "input.image_column" in message


def test_parquet_rows_over_the_limit_or_twice(read_table: Callable[..., dict[str, ImageRecord]]) -> None:
    """Limits and unique keys that hold for tar only."""
    options = ReadOptions(max_image_bytes=1000)
    records = read_table({"key": ["a", "a", "b", "c"], "image": [image(1), image(2), bytes(1001), b""]}, options)
    assert [(record.error or "").partition(": ")[0] for record in records.values()] == [
        "",
        "duplicate",
        "too_large",
        "empty",
    ]
    assert list(records) == ["a", "a#2", "b", "c"]


def test_a_parquet_without_rows_is_an_empty_shard(read_table: Callable[..., dict[str, ImageRecord]]) -> None:
    """The empty parts that Spark writes, reported as failures."""
    assert read_table({"image": pa.array([], pa.binary())}) == {}


@pytest.mark.parametrize("part", [0, 0.3, 0.8, 1])
def test_a_damaged_parquet_is_refused(part: float, tmp_path: Path, store: Store) -> None:
    """A traceback from the depths of Arrow, or rows of noise."""
    stream = io.BytesIO()
    pq.write_table(pa.table({"image": list(IMAGES.values())}), stream, compression="zstd", use_dictionary=False)
    data = stream.getvalue()
    cut = data[: int(len(data) * part)] if part < 1 else data[:200] + bytes(2000) + data[2200:]
    path = tmp_path / "shard.parquet"
    path.write_bytes(cut)
    assert "shard.parquet cannot be read as Parquet: " in refused(
        lambda: read(shard_at(str(path), "parquet", store), store)
    )


def test_a_parquet_is_streamed(tmp_path: Path, store: Store) -> None:
    """Memory that grows with the row group, which many writers make of the whole file."""
    path = tmp_path / "shard.parquet"
    table = pa.table({"key": [str(n) for n in range(400)], "image": [os.urandom(90_000) for _ in range(400)]})
    pq.write_table(table, path, row_group_size=400, compression="none", write_batch_size=16)
    del table
    shard, most = shard_at(str(path), "parquet", store), 0
    before = pa.total_allocated_bytes()
    tracemalloc.start()  # Arrow reads a Python stream: through memory of Python's as well as of its own
    try:
        for _ in SOURCES["parquet"](shard, store=store, options=OPTIONS):
            most = max(most, pa.total_allocated_bytes() - before)
        assert most + tracemalloc.get_traced_memory()[1] < 15_000_000
    finally:
        tracemalloc.stop()


def listing_of(images: Iterable[Listed], run: str, store: Store) -> Shard:
    content = b"".join(map(to_line, images))
    store.put(join(run, "inputs/x.jsonl"), content)
    checksum = hashlib.sha256(content).hexdigest()
    return Shard(id="0" * 20, uri="inputs/x.jsonl", format="listing", bytes=0, etag=checksum, number=0)


def test_a_listing_keeps_its_order_and_says_what_is_amiss(place: str, store: Store) -> None:
    """Rows that hang on which download was faster, or one lost image that costs the whole shard."""
    for number in range(40):
        store.put(join(place, f"{number}.jpg"), image(number))
    store.put(join(place, "large.jpg"), bytes(100_001))
    etag = store.stat(join(place, "1.jpg")).etag
    images = [Listed(f"{n}.jpg", join(place, f"{n}.jpg"), image_id=n) for n in range(40)]
    images[5:5] = [
        Listed("gone.jpg", join(place, "gone.jpg"), image_id=90),
        Listed("large.jpg", join(place, "large.jpg")),
        Listed("known.jpg", join(place, "never asked for.jpg"), bytes=100_001),
        Listed("other.jpg", join(place, "2.jpg"), etag=etag),
        Listed("same.jpg", join(place, "1.jpg"), etag=etag),
    ]
    options = ReadOptions(max_image_bytes=100_000, run_uri=join(place, "run"))
    records = read(listing_of(images, join(place, "run"), store), store, options)
    assert list(records) == [listed.key for listed in images]
    assert [record.image_id for record in records.values()] == [listed.image_id for listed in images]
    assert all(records[f"{n}.jpg"].data == image(n) for n in range(40))
    assert records["same.jpg"].data == image(1)
    errors = {key: record.error.partition(": ")[0] for key, record in records.items() if record.error}
    assert errors == {
        "gone.jpg": "missing",
        "large.jpg": "too_large",
        "known.jpg": "too_large",
        "other.jpg": "unreadable",
    }


def test_a_listing_of_another_plan_is_refused(tmp_path: Path, store: Store) -> None:
    """Images labelled that the manifest does not name."""
    run = str(tmp_path / "run")
    shard = listing_of([Listed("1.jpg", str(tmp_path / "1.jpg"))], run, store)
    store.put(join(run, shard.uri), b"")
    assert "is not the listing that was planned" in refused(
        lambda: read(shard, store, ReadOptions(max_image_bytes=1, run_uri=run))
    )


def test_refused_credentials_are_no_fault_of_the_images(
    s3_uri: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that "succeeds" with every image quarantined because a key had expired."""
    shard = listing_of([Listed("1.jpg", join(s3_uri, "1.jpg"))], str(tmp_path), store)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(AccessError):
        read(shard, Store(), ReadOptions(max_image_bytes=1, run_uri=str(tmp_path)))


def test_images_behind_signed_urls(tmp_path: Path, store: Store) -> None:
    """A signature that gives access to a bucket, written into every row of the labels."""
    (tmp_path / "1.jpg").write_bytes(image(1))
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/1.jpg"
            (planned,) = plan([f"{url}?X-Amz-Signature=secret"], format="auto", images_per_shard=9, store=store)
            assert planned.listing is not None
            store.put(str(tmp_path / planned.shard.uri), planned.listing)
            records = read(planned.shard, store, ReadOptions(max_image_bytes=10**6, run_uri=str(tmp_path)))
        finally:
            server.shutdown()
    assert contents(records) == {"1.jpg": image(1)}
    assert records["1.jpg"].uri == f"{url}?***"


@pytest.mark.parametrize("format", ["tar", "parquet", "listing"])
def test_a_reader_can_be_left_early(format: ShardFormat, tmp_path: Path, store: Store) -> None:
    """Threads and open files left behind where a worker stops in the midst of a shard."""
    forms = packed(IMAGES, str(tmp_path), store)
    uri, kind = forms["images" if format == "listing" else format]
    (planned,) = plan([uri], format=kind, images_per_shard=100, store=store)
    if planned.listing:
        store.put(str(tmp_path / planned.shard.uri), planned.listing)
    options = ReadOptions(max_image_bytes=10**6, run_uri=str(tmp_path))
    records = SOURCES[format](planned.shard, store=store, options=options)
    assert next(records).data == image(0)
    records.close()


IMAGE = bombs.member("a.jpg", image(1))
END = bytes(2 * BLOCK)
TAR_BOMBS = {
    "digits, of which tarfile tries each part": (bombs.pax(("k", "1" * 500_000)), "a number of 100 digits"),
    "no record at all": (bombs.member("pax", b"1" * 500_000, type=tarfile.XHDTYPE), "a record of a pax header is none"),
    "records within records": (
        bombs.member("pax", b"2 " * 200_000 + b"=\n", type=tarfile.XHDTYPE),
        "a record of a pax header is none",
    ),
    "long names upon long names": (bombs.member("././@LongLink", b"x", type=b"L") * 3000, "headers upon headers"),
    "pax headers upon pax headers": (bombs.pax(("k", "v")) * 3000, "headers upon headers"),
    "records for all members": (
        bombs.pax(*[(f"k{number}", "") for number in range(12_000)], type=tarfile.XGLTYPE),
        "more than 10000 records of global pax headers",
    ),
    "a map of holes": (
        bombs.pax(("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "9"))
        + bombs.member("s.jpg", b"99999999\n" + b"1\n" * 3_000_000),
        "more than 4194304 bytes of headers before a member",
    ),
    "a negative size": (bombs.pax(("size", "-5000")), "unexpected end of data"),
    "a size of 30 digits": (bombs.pax(("size", "9" * 30)), "unexpected end of data"),
}


@pytest.mark.parametrize("name", TAR_BOMBS)
def test_headers_of_a_tar_cannot_cost_hours_or_gigabytes(
    name: str, read_tar: Callable[..., dict[str, ImageRecord]]
) -> None:
    """A megabyte of header in which `tarfile` loses itself, so that the worker hangs or dies of its memory."""
    header, words = TAR_BOMBS[name]
    assert words in refused(lambda: read_tar(header + IMAGE + END))


def test_a_gzip_that_never_ends_is_refused(
    read_tar: Callable[..., dict[str, ImageRecord]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of unpacking zeros; or an archive of texts that shrink tenfold, refused as if it were a bomb."""
    monkeypatch.setattr("pipeline.sources.tars._FREE_BYTES", 2_000_000)
    sidecar = bombs.member("zeros.txt", bytes(6_000_000))
    assert refused(lambda: read_tar(gzip.compress(IMAGE + sidecar + END))).endswith(
        "is damaged after its member 'zeros.txt': it unpacks to more than 2000000 bytes, the most of 2000000 and 200 "
        "times its size; accepted are .tar, .tar.gz and .tgz."
    )
    assert list(read_tar(IMAGE + sidecar + END)) == ["a.jpg"]  # it takes as much room as it says
    text = bombs.member("words.txt", os.urandom(100_000).hex().encode() * 20)
    assert list(read_tar(gzip.compress(IMAGE + text + END))) == ["a.jpg"]


def test_names_of_all_kinds_are_keys(read_tar: Callable[..., dict[str, ImageRecord]]) -> None:
    """A name that is absolute, empty, leads elsewhere, or holds what no file system takes: nothing is written by it."""
    names = ["../../etc/passwd.jpg", "/etc/shadow.jpg", "a\nb.jpg", "a\0b.jpg", "x" * 100_000 + ".jpg"]
    members = b"".join(bombs.pax(("path", name)) + bombs.member("n", image(1)) for name in names)
    records = read_tar(members + bombs.member("", image(2)) + END)
    assert list(records) == [*names, "5"]
    assert all(record.error is None for record in records.values())


def test_a_hundred_thousand_copies_are_counted(read_tar: Callable[..., dict[str, ImageRecord]]) -> None:
    """An hour for finding each a key of its own: every copy tried all numbers before it."""
    records = read_tar(bombs.member("a.jpg", b"x") * 50_000 + END)
    assert len(records) == 50_000
    assert "a.jpg#50000" in records


def test_an_archive_in_an_archive_is_a_sidecar(read_tar: Callable[..., dict[str, ImageRecord]]) -> None:
    """Images of an inner archive taken for members of the outer one, because their headers stand at block borders."""
    assert list(read_tar(bombs.member("inner.tar", IMAGE + END) + bombs.member("b.jpg", image(2)) + END)) == ["b.jpg"]


def parquet_of(columns: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(columns if isinstance(columns, pa.Table) else pa.table(columns), stream, **options)
    return stream.getvalue()


@pytest.fixture
def read_parquet(tmp_path: Path, store: Store) -> Callable[[bytes], dict[str, ImageRecord]]:
    def read_bytes(data: bytes) -> dict[str, ImageRecord]:
        path = tmp_path / "shard.parquet"
        path.write_bytes(data)
        return read(shard_at(str(path), "parquet", store), store)

    return read_bytes


def test_a_parquet_that_lies_about_its_rows_is_refused(read_parquet: Callable[..., dict[str, ImageRecord]]) -> None:
    """Rows that vanish in silence: Arrow reads as many as the footer says."""
    data = parquet_of({"image": [image(number) for number in range(10)]}, compression="none")
    footer = bytearray(data[-8 - int.from_bytes(data[-8:-4], "little") : -8])
    counts = [place for place in range(len(footer) - 1) if footer[place : place + 2] == b"\x16\x14"]  # i64, 10
    assert len(counts) == 3
    sentences = []
    for place in counts:
        for count in (3, 50):
            lying = footer.copy()
            lying[place + 1] = 2 * count
            try:
                assert len(read_parquet(data[: -8 - len(footer)] + lying + data[-8:])) == 10
            except ShardError as error:
                sentences.append(str(error).partition("Parquet: ")[2])
    assert sentences == [
        "it announces 3 rows, and its row groups 10",
        "it announces 50 rows, and its row groups 10",
        "it announces 10 rows, and its row groups 3",
        "it announces 10 rows, and its row groups 50",
    ]


def test_a_parquet_that_unpacks_to_gigabytes_is_refused(
    read_parquet: Callable[..., dict[str, ImageRecord]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that dies of a file of a kilobyte: one large page of zeros, or one value that all rows refer to."""
    monkeypatch.setattr("pipeline.sources.parquets._FREE_BYTES", 1_000_000)
    page = parquet_of({"image": [bytes(90_000)] * 50}, compression="zstd", use_dictionary=False)
    value = pa.array([bytes(90_000)]).dictionary_encode().take(pa.array([0] * 50))
    for data in (page, parquet_of({"image": value}, compression="zstd")):
        assert "it unpacks to more than 1000000 bytes" in refused(lambda data=data: read_parquet(data))


def test_encrypted_parquets_are_refused(read_parquet: Callable[..., dict[str, ImageRecord]]) -> None:
    """A worker that Arrow ends at once, because someone asked what an encrypted column takes."""
    import base64

    import pyarrow.parquet.encryption as encryption

    class Keys(encryption.KmsClient):  # type: ignore[misc]
        def wrap_key(self, key: bytes, _: str) -> bytes:
            return base64.b64encode(key)

        def unwrap_key(self, key: bytes, _: str) -> bytes:
            return base64.b64decode(key)

    for plain_footer in (False, True):
        properties = encryption.CryptoFactory(lambda _: Keys()).file_encryption_properties(
            encryption.KmsConnectionConfig(),
            encryption.EncryptionConfiguration(
                footer_key="a", column_keys={"b": ["image"]}, plaintext_footer=plain_footer
            ),
        )
        stream, table = io.BytesIO(), pa.table({"image": [image(1)], "key": ["x"]})
        with pq.ParquetWriter(stream, table.schema, encryption_properties=properties) as writer:
            writer.write_table(table)
        assert "crypt" in refused(lambda stream=stream: read_parquet(stream.getvalue()))


def test_columns_that_hold_no_images_are_named(read_parquet: Callable[..., dict[str, ImageRecord]]) -> None:
    """A traceback, or the wrong one of two columns of a name."""
    twice = pa.table([pa.array([image(1)]), pa.array([image(2)])], names=["image", "image"])
    assert "has several columns of the name 'image'" in refused(lambda: read_parquet(parquet_of(twice)))
    for column in (pa.array([list(image(1))], pa.list_(pa.uint8())), pa.array([1]), pa.array([{"bytes": {"x": b"1"}}])):
        sentence = refused(lambda column=column: read_parquet(parquet_of({"image": column})))
        assert "none of these is known to hold images" in sentence
    deep = pa.int32()
    for _ in range(300):
        deep = pa.struct([("a", deep)])
    stream = io.BytesIO()
    schema = pa.schema([("image", pa.binary()), ("d", deep)])
    pq.ParquetWriter(stream, schema, store_schema=False).close()
    assert "too deeply nested" in refused(lambda: read_parquet(stream.getvalue()))


def test_only_local_files_may_name_local_files() -> None:
    """A data set from elsewhere that chooses among the files of the machines that label it."""
    assert resolve("s3://bucket/sets/", "a/b.jpg") == "s3://bucket/sets/a/b.jpg"
    assert resolve("s3://bucket/", "gs://other/b.jpg") == "gs://other/b.jpg"
    assert resolve("/data/", "/images/b.jpg") == "/images/b.jpg"
    assert resolve("/data/", "../images/b.jpg") == "/data/../images/b.jpg"
    for name in ("/etc/passwd", "file:///etc/passwd", "FILE:///etc/passwd"):
        for base in ("s3://bucket/", "https://host/"):
            with pytest.raises(UserError, match=r"is a local file, which what lies on .*:// may not name"):
                resolve(base, name)
    for name in ("a\0b.jpg", "\ud800.jpg", "x" * 5000):
        with pytest.raises(UserError, match="is no name of an image"):
            resolve("/data/", name)


def test_rows_that_name_what_they_may_not_are_unreadable(
    read_parquet: Callable[..., dict[str, ImageRecord]], tmp_path: Path
) -> None:
    """One absurd path that costs its shard, or that vanishes."""
    (tmp_path / "a.jpg").write_bytes(image(1))
    records = read_parquet(parquet_of({"path": ["a.jpg", "\0", "x" * 5000, "zip::file:///etc/passwd", "", None]}))
    reasons = [(record.error or "fine").partition(":")[0] for record in records.values()]
    assert reasons == ["fine", "unreadable", "unreadable", "unreadable", "empty", "empty"]
    assert "" not in records


COCO_IMAGE = '{"id": 1, "file_name": "a.jpg"}'
WRONG_COCOS = {
    "nothing": ("", "is no JSON: Expecting value"),
    "of other bytes": (b'{"images": "\xff"}', "is no JSON: 'utf-8' codec can't decode"),
    "deep": ("[" * 200_000, "is no JSON: maximum recursion depth"),
    "an array": ("[]", "is no COCO file: it has no list `images`"),
    "an object for a list": ('{"images": {"a": 1}}', "is no COCO file: it has no list `images`"),
    "lists for objects": ('{"images": [["a"]]}', "images[0] has no file_name"),
    "a list for a name": ('{"images": [{"id": 1, "file_name": ["a"]}]}', "images[0] has no file_name"),
    "two lists": (f'{{"images": [{COCO_IMAGE}], "images": []}}', "has `images`, `file_name` or `id` twice"),
    "NaN": ('{"images": [{"id": NaN, "file_name": "a.jpg"}]}', "has the id nan; accepted are whole numbers"),
    "a number without end": (f'{{"images": [{{"id": {"9" * 4000}, "file_name": "a.jpg"}}]}}', "99; accepted are whole"),
    "a larger one": (f'{{"images": [{{"id": {"9" * 5000}, "file_name": "a.jpg"}}]}}', "is no JSON: Exceeds the limit"),
    "NUL in a name": (f'{{"images": [{COCO_IMAGE}, {{"id": 2, "file_name": "\\u0000"}}]}}', "is no name of an image"),
    "half a character": (
        f'{{"images": [{COCO_IMAGE}, {{"id": 2, "file_name": "\\ud800"}}]}}',
        "is no name of an image",
    ),
    "a name without end": (f'{{"images": [{{"id": 2, "file_name": "{"x" * 10**6}"}}]}}', "is no name of an image"),
    "a name too long for a disk": (f'{{"images": [{{"id": 2, "file_name": "{"x" * 3000}"}}]}}', "were looked for"),
    "another scheme": ('{"images": [{"id": 2, "file_name": "gopher://x/y"}]}', "no such kind of storage"),
    "a chain of schemes": ('{"images": [{"id": 2, "file_name": "zip::file:///x"}]}', "nor a URI of one scheme"),
}


@pytest.mark.parametrize("name", WRONG_COCOS)
def test_a_wrong_coco_file_is_refused_in_a_sentence(name: str, tmp_path: Path, store: Store) -> None:
    """A traceback, or a sentence of a megabyte."""
    text, words = WRONG_COCOS[name]
    (tmp_path / "a.jpg").write_bytes(image(1))
    path = tmp_path / "coco.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        coco_images(str(path), None, store=store)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_coco_files_of_other_encodings_are_read(encoding: str, tmp_path: Path, store: Store) -> None:
    """A file that a Windows program wrote, refused."""
    (tmp_path / "a.jpg").write_bytes(image(1))
    path = tmp_path / "coco.json"
    path.write_text(f'{{"images": [{COCO_IMAGE}]}}', encoding=encoding)
    assert [one.key for one in coco_images(str(path), None, store=store)] == ["a.jpg"]


def test_a_coco_file_of_gigabytes_is_not_read(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head node of a cluster that dies of a JSON."""
    monkeypatch.setattr("pipeline.sources.coco._MAX_BYTES", 1000)
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"images": [json.loads(COCO_IMAGE)], "note": "x" * 1000}))
    with pytest.raises(UserError, match=r"bytes; accepted are up to 1000\. Split it, or leave out its annotations"):
        coco_images(str(path), None, store=store)
