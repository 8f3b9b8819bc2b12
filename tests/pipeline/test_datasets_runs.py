"""Labeling runs as training data."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as mask_api

from pipeline import datasets, images, runs
from pipeline.config import DatasetConfig
from pipeline.datasets import Dataset
from pipeline.errors import UserError
from pipeline.store import Store, join
from tests.fakes import draw
from tests.small_runs import IMAGES, label, make_run, rewrite

THRESHOLD = 0.6


def read(run: str, store: Store, cache: Path | None, *, score_threshold: float = THRESHOLD) -> Dataset:
    return datasets.read(DatasetConfig(run=run, score_threshold=score_threshold), store, key="data.train", cache=cache)


def pixels(dataset: Dataset, store: Store) -> dict[str, np.ndarray]:
    """The images of a data set as they are read from where it says that they are, by file name."""
    names = {one["id"]: one["file_name"] for one in dataset.coco["images"]}
    limits = {"max_bytes": 1 << 20, "max_pixels": 1 << 20}
    return {names[id_]: images.decode(store.get(uri), **limits) for id_, uri in dataset.uris.items()}


def drawn(seed: int) -> np.ndarray:
    return images.decode(draw(seed), max_bytes=1 << 20, max_pixels=1 << 20)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the stores of this process have opened."""
    uris: list[str] = []
    real: Callable[..., object] = Store.open
    monkeypatch.setattr(Store, "open", lambda self, uri, **options: (uris.append(uri), real(self, uri, **options))[1])
    return uris


def test_a_taxonomy_and_thresholds_hold_for_training(tmp_path: Path, store: Store) -> None:
    """A model that is trained on classes which the user merged, or on masks that were found too bad, is not theirs."""
    make_run(store, str(tmp_path / "run"), tmp_path / "inputs", shards=1)
    (tmp_path / "classes.yaml").write_text("dark: bright")
    config = DatasetConfig(run=str(tmp_path / "run"), score_threshold=0.0, taxonomy=str(tmp_path / "classes.yaml"))
    found = datasets.read(config, store, key="data.train", cache=tmp_path / "cache")
    assert [one["name"] for one in found.coco["categories"]] == ["bright"]
    assert {one["category_id"] for one in found.coco["annotations"]} == {1}
    missing = replace(config, taxonomy=None, thresholds=str(tmp_path / "none.json"))
    with pytest.raises(UserError, match=r"data\.train\.thresholds"):
        datasets.read(missing, store, key="data.train", cache=tmp_path / "cache")


@pytest.mark.parametrize("formats", [("parquet", "coco"), ("coco",)])
def test_what_a_run_labelled(tmp_path: Path, store: Store, formats: tuple[str, ...]) -> None:
    """The masks of a good score, pixel by pixel, beside the images that they were found in; also of a run without
    Parquet shards, whose rows do not say where their images are."""
    run = str(tmp_path / "run")
    manifest = make_run(store, run, tmp_path / "in", formats=formats)
    found = read(run, store, tmp_path / "cache")
    rows = [row for row in runs.read_rows(store, run) if row.status != "quarantined"]
    assert len(rows) == 2 * (IMAGES - 1)
    assert [(one["id"], one["file_name"]) for one in found.coco["images"]] == [(row.image_id, row.key) for row in rows]
    assert [one["id"] for one in found.coco["categories"]] == [1, 7]
    assert found.missing == ()
    kept = 0
    for row in rows:
        expected = [
            (category_id, counts, area)
            for category_id, counts, area, score in zip(
                row.instances.category_ids, row.instances.counts, row.instances.areas, row.instances.scores, strict=True
            )
            if score >= THRESHOLD
        ]
        ours = [one for one in found.coco["annotations"] if one["image_id"] == row.image_id]
        assert [(one["category_id"], one["segmentation"]["counts"], one["area"]) for one in ours] == expected
        assert all(mask_api.decode(one["segmentation"]).shape == (row.height, row.width) for one in ours)
        assert all({"id", "bbox", "iscrowd"} <= set(one) and "score" not in one for one in ours)
        kept += len(ours)
    assert 0 < kept < sum(len(row.instances) for row in rows)
    found_pixels = pixels(found, store)
    assert list(found_pixels) == [f"{s}-{i}.png" for s in range(len(manifest.shards)) for i in range(IMAGES - 1)]
    for name, image in found_pixels.items():
        shard, number = name.removesuffix(".png").split("-")
        np.testing.assert_array_equal(image, drawn(10 * int(shard) + int(number)))


def test_archives_are_read_once(tmp_path: Path, store: Store, opened: list[str]) -> None:
    """Each worker of a node, and each attempt, would fetch terabytes again; not even the archives are needed then."""
    run, cache = str(tmp_path / "run"), tmp_path / "cache"
    make_run(store, run, tmp_path / "in")
    first = read(run, store, cache)
    assert sum(uri.endswith(".tar") for uri in opened) == 4  # labelled and unpacked
    shutil.rmtree(tmp_path / "in")
    again = read(run, store, cache)
    assert (again.coco, again.uris) == (first.coco, first.uris)
    np.testing.assert_array_equal(pixels(again, store)["1-2.png"], drawn(12))


def test_a_cache_that_was_tidied_up(tmp_path: Path, store: Store) -> None:
    """Systems remove old files from temporary folders one by one."""
    run, cache = str(tmp_path / "run"), tmp_path / "cache"
    make_run(store, run, tmp_path / "in")
    first = read(run, store, cache)
    Path(first.uris[first.coco["images"][0]["id"]]).unlink()
    assert pixels(read(run, store, cache), store).keys() == {
        f"{s}-{i}.png" for s in range(2) for i in range(IMAGES - 1)
    }


def test_unpacking_is_whole_or_not_at_all(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that dies while it unpacks must not leave half of the images for the next one to take for all."""
    run, cache = str(tmp_path / "run"), tmp_path / "cache"
    manifest = make_run(store, run, tmp_path / "in", shards=1)
    real = Path.write_bytes
    written: list[Path] = []

    def failing(path: Path, data: bytes) -> int:
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", failing)
    with pytest.raises(UserError) as caught:
        read(run, store, cache)
    folder = cache / manifest.run_id / manifest.shards[0].id
    assert str(caught.value) == f"data.cache: {folder} cannot be written: no space left on device"
    assert [path.name for path in folder.parent.iterdir()] == [f"{folder.name}.lock"]
    assert len(read(run, store, cache).uris) == IMAGES - 1


def test_one_of_several_unpacks(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of a node begin at the same moment, and would all fetch the same archives."""
    run, cache, workers = str(tmp_path / "run"), tmp_path / "cache", 3
    make_run(store, run, tmp_path / "in", shards=1)
    state, lines, archives = threading.Condition(), [], []
    flock, open_ = fcntl.flock, Store.open

    def queue(file: object, kind: int) -> None:
        with state:
            lines.append(file)
            state.notify_all()
        flock(file, kind)

    def open_when_all_wait(self: Store, uri: str, **options: str) -> object:
        if uri.endswith(".tar"):
            with state:
                archives.append(uri)
                state.notify_all()
                state.wait_for(lambda: len(lines) == workers or len(archives) > 1, timeout=60)
        return open_(self, uri, **options)

    monkeypatch.setattr(fcntl, "flock", queue)
    monkeypatch.setattr(Store, "open", open_when_all_wait)
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda _: read(run, store, cache), range(workers)))
    assert archives == [str(tmp_path / "in" / "0.tar")]
    assert all(one.uris == found[0].uris for one in found)


def test_the_default_cache(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies in the temporary folder, and what another user left there is not taken for images."""
    run = str(tmp_path / "run")
    make_run(store, run, tmp_path / "in", shards=1)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    found = read(run, store, None)
    [own] = (tmp_path / "tmp").iterdir()
    assert own.name == f"patchlabel-{os.getuid()}"
    assert own.stat().st_mode & 0o777 == 0o700
    assert all(Path(uri).is_relative_to(own) for uri in found.uris.values())
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    own.rename(own.with_name("patchlabel-12345"))
    with pytest.raises(
        UserError, match=r"data\.cache: .*-12345 belongs to another user; set data\.cache to a folder of"
    ):
        read(run, store, None)


def test_images_of_their_own(place: str, tmp_path: Path, store: Store) -> None:
    """They are read from where they are, on disk and on S3."""
    for number in range(3):
        store.put(join(place, "in", f"a/{number}.png"), draw(number))
    store.put(join(place, "in", "a/bad.png"), b"no image")
    label(store, join(place, "in"), join(place, "run"))
    found = read(join(place, "run"), store, tmp_path / "cache")
    assert sorted(found.uris.values()) == [join(place, "in", f"a/{number}.png") for number in range(3)]
    assert not (tmp_path / "cache").exists()
    for number in range(3):
        np.testing.assert_array_equal(pixels(found, store)[f"a/{number}.png"], drawn(number))
    for number in range(3):
        store.delete(join(place, "in", f"a/{number}.png"))
    with pytest.raises(UserError) as caught:
        read(join(place, "run"), store, tmp_path / "cache")
    assert str(caught.value) == (
        f"data.train.run: {place}/run: of the 3 images that it labelled, 3 were looked for, and none is there any more "
        f"(the first is {place}/in/a/0.png)"
    )


@pytest.mark.parametrize("column", ["image", "uri"])
def test_parquet(tmp_path: Path, store: Store, column: str) -> None:
    """Images in a Parquet file are unpacked, those that it only names are not."""
    for number in range(3):
        store.put(str(tmp_path / "apart" / f"{number}.png"), draw(number))
    values = [draw(number) if column == "image" else f"../apart/{number}.png" for number in range(3)]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"key": ["a", "b", "c"], column: values}), tmp_path / "in" / "0.parquet")
    label(store, str(tmp_path / "in"), str(tmp_path / "run"))
    found = read(str(tmp_path / "run"), store, tmp_path / "cache")
    assert (tmp_path / "cache").exists() == (column == "image")
    for number, name in enumerate("abc"):
        np.testing.assert_array_equal(pixels(found, store)[name], drawn(number))


def test_the_score_threshold(tmp_path: Path, store: Store) -> None:
    """An image whose masks are all below it stays, as one without objects."""
    run = str(tmp_path / "run")
    make_run(store, run, tmp_path / "in", shards=1)
    every = read(run, store, tmp_path / "cache", score_threshold=0)
    none = read(run, store, tmp_path / "cache", score_threshold=1)
    assert len(every.coco["annotations"]) == sum(len(row.instances) for row in runs.read_rows(store, run))
    assert none.coco["annotations"] == []
    assert none.coco["images"] == every.coco["images"]


def test_a_run_that_is_not_done(tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """What is committed can be used, and that it is not all is said."""
    make_run(store, str(tmp_path / "none"), tmp_path / "in", done=0)
    with pytest.raises(UserError) as caught:
        read(str(tmp_path / "none"), store, tmp_path / "cache")
    assert str(caught.value) == f"data.train.run: {tmp_path}/none has no committed shard yet"
    make_run(store, str(tmp_path / "run"), tmp_path / "in", done=1)
    assert len(read(str(tmp_path / "run"), store, tmp_path / "cache").uris) == IMAGES - 1
    assert "1 shards are not committed; their images are not used" in caplog.text
    with pytest.raises(UserError) as caught:
        read(str(tmp_path / "in"), store, tmp_path / "cache")
    assert str(caught.value) == f"data.train.run: {tmp_path}/in is no labeling run: it holds no manifest.json."


def test_archives_that_are_gone(tmp_path: Path, store: Store) -> None:
    """Or that were written anew since: their images may be others than those that were labelled."""
    run = str(tmp_path / "run")
    make_run(store, run, tmp_path / "in", shards=1)
    tar = tmp_path / "in" / "0.tar"
    tar.write_bytes(tar.read_bytes() + bytes(10240))
    with pytest.raises(UserError, match=rf"^data\.train\.run: {run}: {tar} was replaced since"):
        read(run, store, tmp_path / "cache")
    tar.unlink()
    with pytest.raises(UserError, match=rf"^data\.train\.run: {run}: {tar}: no such file or directory"):
        read(run, store, tmp_path / "cache")


def test_a_mask_that_cannot_be_decoded(tmp_path: Path, store: Store) -> None:
    """A labeler with a bug may have committed one, and pycocotools would read past its end."""
    run = str(tmp_path / "run")
    manifest = make_run(store, run, tmp_path / "in", shards=1)
    bad = ("zzzz",)
    rewrite(
        store,
        run,
        manifest,
        lambda row: replace(row, instances=replace(row.instances, counts=bad * len(row.instances))),
    )
    with pytest.raises(
        UserError, match=rf"^data\.train\.run: {run}: masks\[0\] has a mask that cannot be decoded: its"
    ):
        read(run, store, tmp_path / "cache")
