"""Input and output that cannot be used, and bad shards and images among good ones: what is said, and what is left."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import label
from pipeline import cli, ledger, runs
from pipeline.errors import ShardError
from pipeline.store import Store
from pipeline.worker import Run, label_shard
from tests.fakes import draw, write_tar
from tests.refusals import NO_SUCH_FILE, Refused, start, told_by_ray, tree
from tests.small_runs import config_of, found_run, make_run


def table(**columns: list[Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        pq.write_table(pa.table(columns), path)

    return write


def text(content: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(content)

    return write


#: name of a file in the folder `data`, what writes it, settings, sentence
INPUTS: dict[str, tuple[str, Callable[[Path], None], list[str], str]] = {
    "missing": ("a.tar", text(""), ["input.uri={tmp}/nothing"], "input.uri: there is nothing at {tmp}/nothing"),
    "glob": ("a.tar", text(""), ["input.uri={tmp}/data/*.zip"], "input.uri: there is nothing at {tmp}/data/*.zip"),
    "scheme": (
        "a.tar",
        text(""),
        ["input.uri=s4://bucket/key"],
        "s4://bucket/key: no such kind of storage; a local path, file://, s3://, gs://, az://, https:// and http:// "
        "are accepted",
    ),
    "twice": (
        "a.tar",
        text(""),
        ["input.uri=[{tmp}/data, {tmp}/data/a.tar]"],
        "input.uri names {tmp}/data/a.tar, which is a part of {tmp}/data already",
    ),
    "no images": (
        "notes.txt",
        text("x"),
        ["input.format=tar"],
        "{tmp}/data holds nothing of input.format tar (.tar, .tar.gz and .tgz), but .txt 1",
    ),
    "no column": (
        "a.parquet",
        table(id=[1], name=["x"]),
        [],
        "{tmp}/data/a.parquet has id (int64), name (string), and none of these is known to hold images; set "
        "input.image_column to a column of bytes, of struct<bytes, path>, or of URIs",
    ),
    "another column": (
        "a.parquet",
        table(id=[1], name=["x"]),
        ["input.image_column=pixels"],
        "{tmp}/data/a.parquet has no column 'pixels', which input.image_column names; it has id (int64), name (string)",
    ),
    "no COCO": (
        "a.json",
        text('{"annotations": []}'),
        [],
        "{tmp}/data/a.json is no COCO file: it has no list `images` with at least one image",
    ),
    "no JSON": ("a.json", text("hello"), [], "{tmp}/data/a.json is no JSON: Expecting value: line 1 column 1 (char 0)"),
    "COCO without its images": (
        "a.json",
        text('{"images": [{"id": 1, "file_name": "a.jpg"}]}'),
        ["input.images={tmp}/nowhere"],
        "{tmp}/data/a.json: of its images, 'a.jpg' and 0 others were looked for, and none is in {tmp}/nowhere; set "
        "input.images to the folder in which its file_names start",
    ),
}


@pytest.mark.parametrize("case", INPUTS)
def test_an_input_that_cannot_be_labelled(refused: Refused, config: Path, tmp_path: Path, case: str) -> None:
    """A run over the wrong input, or over nothing, must not look like one that went well."""
    name, write, settings, sentence = INPUTS[case]
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / name)
    settings = [f"input.uri={tmp_path}/data", *(one.format(tmp=tmp_path) for one in settings)]
    assert refused(label.main, config, *settings) == sentence.format(tmp=tmp_path)
    assert tree(tmp_path / "out") == set()


def test_an_empty_prefix(refused: Refused, config: Path, tmp_path: Path) -> None:
    """A folder that was to be filled first is told by both commands alike."""
    (tmp_path / "data").mkdir()
    sentence = f"input.uri: there is nothing at {tmp_path}/data"
    assert refused(label.main, config, f"input.uri={tmp_path}/data") == sentence
    assert tree(tmp_path / "out") == set()


def test_patchlabel_plan_refuses_the_same(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A plan that passes what the run refuses is no plan."""
    for setting, sentence in (
        (f"input.uri={tmp_path}/nothing", f"input.uri: there is nothing at {tmp_path}/nothing"),
        ("xyz=3", "--set: xyz is no known key; known are input, output, labeler, run, limits"),
    ):
        assert cli.main(["plan", "--config", str(config), "--set", setting]) == 2
        out, err = capsys.readouterr()
        assert (out, err.strip().removesuffix(".")) == ("", f"error: {sentence}")


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("{tmp}/file/out", "{tmp}/file/out: not a directory"),
        ("{tmp}/file", "{tmp}/file: file exists"),
        ("/proc/out", f"/proc/out: {NO_SUCH_FILE}"),
        (
            "file://server/out",
            "file://server/out names the host 'server'; write file:///absolute/path for a local file",
        ),
    ],
)
def test_an_output_that_cannot_be_written(
    refused: Refused, config: Path, tmp_path: Path, place: str, sentence: str
) -> None:
    """This must be known before the first image is labelled, not after the first shard."""
    (tmp_path / "file").write_text("in the way")
    found = refused(label.main, config, f"output.uri={place.format(tmp=tmp_path)}")
    assert found == f"output.uri cannot be written: {sentence.format(tmp=tmp_path)}"
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_relative_output_in_a_ray_job(
    refused: Refused, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The labels would be lost with the job's working directory."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert refused(label.main, config, "output.uri=labels") == (
        "output.uri is 'labels', which in a Ray job would lie in a folder that is removed with the job; give an "
        "absolute path or a URI such as s3://bucket/prefix"
    )
    assert not (tmp_path / "labels").exists()


def test_an_output_of_another_run(refused: Refused, config: Path, tmp_path: Path) -> None:
    """Rows of two configs under one name cannot be told apart afterwards."""
    make_run(Store(), str(tmp_path / "out"), tmp_path / "in", done=1)
    before = {name: (tmp_path / "out" / name).read_bytes() for name in tree(tmp_path / "out")}
    assert refused(label.main, config, "labeler.batch_size=2", "labeler.score_threshold=0.5") == (
        f"{tmp_path}/out holds a run that was made differently (labeler.score_threshold: 0.05 -> 0.5); give another "
        "output.uri, or go on all the same with --set run.accept_changes=true, which mixes both in one run"
    )
    assert before == {name: (tmp_path / "out" / name).read_bytes() for name in tree(tmp_path / "out")}


def test_an_output_with_a_damaged_manifest(refused: Refused, config: Path, tmp_path: Path) -> None:
    """A run that cannot be read must not be founded anew over what is there."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/manifest.json").write_text('{"run_id": "')
    assert refused(label.main, config).startswith(f"{tmp_path}/out/manifest.json is damaged: Invalid JSON: EOF")
    assert tree(tmp_path / "out") == {"manifest.json"}


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and has no pixels to speak of."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_bad_images_are_rows_with_a_reason(tmp_path: Path) -> None:
    """One bad image among a million must cost one row, and say why."""
    jpeg = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)).save(jpeg, "JPEG")
    files = {
        "good.png": draw(1),
        "cut.jpg": jpeg.getvalue()[: len(jpeg.getvalue()) // 2],
        "text.jpg": b"this is no image\n",
        "huge.png": png_header(30_000, 30_000),
    }
    write_tar(tmp_path / "in/0.tar", files)
    store, config = Store(), config_of(tmp_path / "in", str(tmp_path / "out"))
    manifest, labeler = found_run(store, config)
    run = Run(id=manifest.run_id, uri=config.output.uri, config=config)
    label_shard(manifest.shards[0], run=run, store=store, labeler=labeler)
    assert {row.key: (row.status, row.error) for row in runs.read_rows(store, config.output.uri)} == {
        "good.png": ("labelled", None),
        "cut.jpg": ("quarantined", "truncated: the JPEG data end before the image does"),
        "text.jpg": (
            "quarantined",
            "not_an_image: the bytes begin with b'this is no image'; accepted are JPEG, PNG, WebP, TIFF, BMP",
        ),
        "huge.png": (
            "quarantined",
            "too_large: 30000x30000 is 900000000 pixels, over limits.max_image_pixels = 100000000",
        ),
    }


SHARDS: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "cut": ("0.tar", lambda tar: tar[:5000], "is damaged after its member '4.png': unexpected end of data; "),
    "garbage": ("0.tar", lambda tar: b"\xff" * 512 + tar[512:], "is no tar archive: bad checksum; accepted are .tar, "),
    "empty": ("0.tar", lambda _: b"", "is no tar archive: it ends without the end-of-archive mark; accepted are "),
    "text": ("0.tar", lambda _: b"hello\n" * 300, "is no tar archive: invalid header; accepted are .tar, .tar.gz and "),
    "gzip": (
        "0.tar.gz",
        lambda tar: gzip.compress(tar)[:-200],
        "Compressed file ended before the end-of-stream marker",
    ),
    "Parquet": ("0.parquet", lambda _: b"hello", "cannot be read as Parquet: "),
}


@pytest.mark.parametrize("case", SHARDS)
def test_a_corrupt_shard_leaves_nothing(tmp_path: Path, case: str) -> None:
    """A shard that breaks off must be reported by name, and none of its rows may be taken for the whole."""
    name, damage, sentence = SHARDS[case]
    good = write_tar(tmp_path / "good.tar", {f"{i}.png": draw(i, width=90, height=60) for i in range(30)}).read_bytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(damage(good))
    store, config = Store(), config_of(tmp_path / "in", str(tmp_path / "out"))
    manifest, labeler = found_run(store, config)
    before = tree(tmp_path / "out")
    run = Run(id=manifest.run_id, uri=config.output.uri, config=config)
    with pytest.raises(ShardError) as caught:
        label_shard(manifest.shards[0], run=run, store=store, labeler=labeler)
    assert str(caught.value).startswith(f"{tmp_path}/in/{name} ")
    assert sentence in str(caught.value)
    assert tree(tmp_path / "out") == before


def test_an_output_of_another_labeler(config: Path, tmp_path: Path) -> None:
    """The same settings with other weights are another labeler, which only a worker can tell."""
    make_run(Store(), str(tmp_path / "out"), tmp_path / "in", done=1)
    manifest = tmp_path / "out/manifest.json"
    made = json.loads(manifest.read_text())["fingerprint"]
    manifest.write_text(manifest.read_text().replace(made, "0123456789abcdef"))
    before = tree(tmp_path / "out")
    assert told_by_ray(start(config, "labeler.batch_size=2")) == (
        f"{tmp_path}/out holds a run that was made differently (labeler fingerprint: 0123456789abcdef -> {made}); give "
        "another output.uri, or go on all the same with --set run.accept_changes=true, which mixes both in one run"
    )
    assert tree(tmp_path / "out") == before


def test_a_worker_that_fits_no_machine(config: Path, tmp_path: Path) -> None:
    """Ray would wait for such a place for ever."""
    sentence = told_by_ray(start(config, "run.cpus_per_worker=4096"))
    assert sentence.startswith("run.cpus_per_worker is 4096, but this machine has ")
    assert tree(tmp_path / "out") == set()


def test_a_run_with_corrupt_shards_goes_on_and_exits_with_1(config: Path, tmp_path: Path) -> None:
    """One broken shard among thousands must neither stop the others nor be forgotten."""
    (tmp_path / "in/1.tar").write_text("hello\n" * 300)
    (tmp_path / "in/2.tar").write_bytes(b"")
    code, out, err = start(config)
    assert code == 1
    assert out.splitlines()[0] == f"1 of 3 shards are committed at {tmp_path}/out"
    accepted = "accepted are .tar, .tar.gz and .tgz"
    assert sorted(out.splitlines()[2:]) == [
        "run the same command again to try what was set aside; a file that was replaced needs another output.uri",
        f"set aside after 1 attempt: {tmp_path}/in/1.tar is no tar archive: invalid header; {accepted}",
        f"set aside after 1 attempt: {tmp_path}/in/2.tar is no tar archive: it ends without the end-of-archive mark; "
        f"{accepted}",
    ]
    assert not any("Traceback" in line for line in err)
    store = Store()
    (commit,) = ledger.commits(store, str(tmp_path / "out"))
    failures = ledger.failures(store, str(tmp_path / "out"))
    assert tree(tmp_path / "out") == {
        "manifest.json",
        *(f"shards/{path.name}" for path in (tmp_path / "out/shards").iterdir()),
        f"commits/{commit.shard_id[:2]}/{commit.shard_id}.json",
        *(output.path for output in commit.outputs.values()),
        *(f"failures/{failure.shard_id}.json" for failure in failures),
        *(f"history/{path.name}" for path in (tmp_path / "out/history").iterdir()),
        *(f"report/{name}" for name in ("report.html", "report.json", "throughput.png")),
    }
    assert len(failures) == 2
