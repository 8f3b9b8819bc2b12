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

from pipeline.errors import AccessError, ShardError, UnreachableError
from pipeline.plan import plan
from pipeline.records import REASONS, ImageRecord, Shard, ShardFormat
from pipeline.sources import SOURCES, ReadOptions
from pipeline.sources.listings import Listed, to_line
from pipeline.store import Patience, Store, join

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
