"""What the user names, as shards: the same ones each time, and one sentence for what cannot be planned."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.plan
from pipeline.errors import NotFoundError, UnreachableError, UserError
from pipeline.plan import Planned, plan
from pipeline.store import Patience, Store, join


def planned(*uris: str | Path, store: Store, format: Any = "auto", size: int = 3, **options: Any) -> list[Planned]:
    found = plan([str(uri) for uri in uris], format=format, images_per_shard=size, store=store, **options)
    return list(found)


def refusal(*uris: str | Path, store: Store, format: Any = "auto", **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        planned(*uris, store=store, format=format, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fill(place: str | Path, names: Iterable[str], store: Store) -> None:
    for name in names:
        store.put(join(str(place), name), name.encode())


def lines(plan: Iterable[Planned]) -> list[dict[str, Any]]:
    return [json.loads(line) for planned in plan for line in (planned.listing or b"").splitlines()]


def keys(plan: Iterable[Planned]) -> list[str]:
    return [line["key"] for line in lines(plan)]


def coco(path: Path, images: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": [{"id": 1, "image_id": 1, "bbox": [0, 0, 1, 1]}]}))
    return str(path)


def test_each_tar_is_a_shard(place: str, store: Store) -> None:
    """A shard list that changes between two starts, so that a run cannot resume."""
    fill(place, ["b.tar", "a.tgz", "deep/c.tar.gz", "readme.txt"], store)
    first = planned(place, store=store)
    assert [shard.shard.uri for shard in first] == [join(place, name) for name in ("a.tgz", "b.tar", "deep/c.tar.gz")]
    assert planned(place, store=store) == first
    shard = first[1].shard
    assert shard.id == hashlib.sha256(f"{shard.uri}\0{shard.etag}".encode()).hexdigest()[:20]
    assert (shard.format, shard.bytes, first[1].images, first[1].listing) == ("tar", 5, None, None)
    assert 0 <= shard.number < 1 << 31
    store.put(shard.uri, b"replaced")
    replaced = planned(place, store=store)[1].shard
    assert replaced.id != shard.id
    assert replaced.number == shard.number


def test_images_are_grouped(place: str, store: Store) -> None:
    """Images left over at the end, or groups that hang on the order in which the storage lists."""
    names = ["a/2.jpg", "a-b.png", "a/10.JPEG", "b.bmp", "z.tiff", "a/1.webp", "b/x.gif"]
    fill(join(place, "in"), names, store)
    shards = planned(join(place, "in"), store=store)
    assert [shard.images for shard in shards] == [3, 3, 1]
    assert keys(shards) == sorted(names)
    for shard in shards:
        assert shard.listing is not None
        checksum = hashlib.sha256(shard.listing).hexdigest()
        assert shard.shard.etag == checksum
        assert shard.shard.uri == f"inputs/{checksum[:20]}.jsonl"
        assert shard.shard.id == checksum[:20]
        assert shard.shard.format == "listing"
        assert shard.shard.bytes == sum(line["bytes"] for line in lines([shard]))
    assert lines(shards)[0] == {
        "key": "a-b.png",
        "uri": join(place, "in/a-b.png"),
        "bytes": 7,
        "etag": store.stat(join(place, "in/a-b.png")).etag,
    }


def test_keys_start_where_the_user_says(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels that cannot be joined with the data set, because their keys hold the path of some machine."""
    fill(tmp_path / "in", ["cats/1.jpg", "cats/2.jpg", "dogs/1.jpg"], store)
    all_keys = ["cats/1.jpg", "cats/2.jpg", "dogs/1.jpg"]
    assert keys(planned(tmp_path / "in", store=store)) == all_keys
    assert keys(planned(f"{tmp_path}/in/", store=store)) == all_keys
    assert keys(planned(f"file://{tmp_path}/in", store=store)) == all_keys
    assert keys(planned(tmp_path / "in/*/*.jpg", store=store)) == all_keys
    assert keys(planned(tmp_path / "in/cats/*", store=store)) == ["1.jpg", "2.jpg"]
    assert keys(planned(tmp_path / "in/cats/2.jpg", store=store)) == ["2.jpg"]
    monkeypatch.chdir(tmp_path)
    relative = planned("in", store=store)
    assert keys(relative) == all_keys
    assert lines(relative)[0]["uri"] == str(tmp_path / "in/cats/1.jpg")  # workers start elsewhere


@pytest.mark.parametrize("name", [b"\xff.tar", b"\xff.jpg"])
def test_a_name_that_no_output_can_hold_is_refused(name: bytes, tmp_path: Path, store: Store) -> None:
    """A traceback at the end of a long plan, or images that fail for ever."""
    with suppress(OSError):  # where the file system takes no such name, nothing is to be refused
        (tmp_path / os.fsdecode(name)).write_bytes(b"x")
        assert refusal(tmp_path, store=store).startswith(f"{tmp_path}/\\udcff.")


def test_numbers_are_unique(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards whose images get the same ids: with 100,000 shards two hashes of 31 bits do agree."""
    fill(tmp_path, [f"{number}.tar" for number in range(5)], store)
    monkeypatch.setattr(pipeline.plan, "_number", lambda content: (1 << 31) - 2)
    assert [shard.shard.number for shard in planned(tmp_path, store=store)] == [(1 << 31) - 2, (1 << 31) - 1, 0, 1, 2]


def test_sidecars_are_left_out_and_told(tmp_path: Path, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """Files that were meant to be labelled and are not, without a word."""
    fill(tmp_path, ["1.jpg", "1.txt", "2.txt", "._1.jpg", "notes", "labels.json"], store)
    with caplog.at_level(logging.INFO):
        assert keys(planned(tmp_path, store=store)) == ["1.jpg"]
    assert caplog.messages == [f"{tmp_path}: left out as no images: .txt 2, .jpg 1, .json 1, without extension 1"]


def test_auto_refuses_a_mixture(tmp_path: Path, store: Store) -> None:
    """Half of a folder labelled, and the other half passed over."""
    fill(tmp_path, ["1.jpg", "2.jpg", "a.tar", "b.parquet"], store)
    message = refusal(tmp_path, store=store)
    assert message == (
        f"{tmp_path} holds files of several formats (1 of tar, 1 of parquet, 2 of images); "
        "set input.format to the one meant."
    )
    assert keys(planned(tmp_path, store=store, format="images")) == ["1.jpg", "2.jpg"]
    assert [shard.shard.uri for shard in planned(tmp_path, store=store, format="tar")] == [str(tmp_path / "a.tar")]


def test_a_named_file_needs_no_usual_name(tmp_path: Path, store: Store) -> None:
    """A tar without an extension, which the user has named together with its format."""
    fill(tmp_path, ["shard-0001", "photo"], store)
    assert planned(tmp_path / "shard-0001", store=store, format="tar")[0].shard.format == "tar"
    assert keys(planned(tmp_path / "photo", store=store, format="images")) == ["photo"]


def test_what_is_not_there_is_told(tmp_path: Path, store: Store) -> None:
    """A run that ends with success and no image, or a traceback."""
    (tmp_path / "empty").mkdir()
    fill(tmp_path, ["some/1.txt", "some/2.txt", "data.bin"], store)
    for uri in (tmp_path / "none", tmp_path / "empty", tmp_path / "some/*.jpg", tmp_path / "none.tar"):
        for format in ("auto", "tar", "coco"):
            assert refusal(uri, store=store, format=format) == f"input.uri: there is nothing at {uri}."
    for uri in (tmp_path / "some", tmp_path / "data.bin"):
        message = refusal(uri, store=store)
        assert message.startswith(f"{uri} holds nothing whose name tells an input format, but .")
        assert "tar (.tar, .tar.gz and .tgz)" in message
    assert refusal(tmp_path / "some", store=store, format="tar") == (
        f"{tmp_path}/some holds nothing of input.format tar (.tar, .tar.gz and .tgz), but .txt 2."
    )
    assert "input.uri is empty" in refusal(store=store)


def test_wrong_settings_are_told(tmp_path: Path, store: Store) -> None:
    """A typo in the config that ends in a traceback, or in shards without images."""
    fill(tmp_path, ["1.jpg"], store)
    assert refusal(tmp_path, store=store, format="zip") == (
        "input.format is 'zip'; accepted are auto, tar, parquet, images, coco."
    )
    for size in (0, (1 << 22) + 1):
        assert "input.images_per_shard" in refusal(tmp_path, store=store, size=size)


def test_credentials_that_are_missing_are_the_users_matter(
    s3_uri: str, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    """A retry for ever, or a traceback of boto3."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "credentials" in refusal(join(s3_uri, "in"), store=Store())


def test_a_store_that_does_not_answer_is_not(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A network failure reported as the user's mistake."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError):
        planned("s3://bucket/in", store=Store(Patience(attempts=1, connect_s=1.0, read_s=1.0)))


def test_the_same_images_are_not_planned_twice(tmp_path: Path, store: Store) -> None:
    """Images labelled and counted twice because two of the names meet them."""
    fill(tmp_path, ["a/1.jpg", "a/2.jpg", "a-b/3.jpg", "t/1.tar", "t/2.tar"], store)
    part = f"input.uri names {tmp_path}/a/1.jpg, which is a part of {tmp_path}/a already."
    assert refusal(tmp_path / "a/1.jpg", tmp_path / "a-b", tmp_path / "a", store=store) == part
    assert keys(planned(tmp_path / "a", f"{tmp_path}/a/", tmp_path / "a", store=store)) == ["1.jpg", "2.jpg"]
    assert keys(planned(tmp_path / "a/*.jpg", tmp_path / "a/1*", store=store)) == ["1.jpg", "2.jpg"]
    assert len(planned(tmp_path / "t/*.tar", tmp_path / "t/1*", store=store)) == 2


def test_several_inputs_are_planned_each_by_its_kind(tmp_path: Path, store: Store) -> None:
    """A list of inputs of which only the first counts."""
    fill(tmp_path, ["a/1.jpg", "b/1.tar"], store)
    assert [shard.shard.format for shard in planned(tmp_path / "b", tmp_path / "a", store=store)] == ["listing", "tar"]


def test_coco_images_keep_name_and_id(tmp_path: Path, store: Store) -> None:
    """COCO results under other ids than the data set's, or shards that hang on the order in the file."""
    fill(tmp_path / "val", ["x/1.jpg", "2.jpg"], store)
    images = [{"id": 9, "file_name": "x/1.jpg", "width": 3}, {"id": 0, "file_name": "2.jpg"}]
    uri = coco(tmp_path / "annotations/instances_val.json", images)
    expected = [
        {"key": "2.jpg", "uri": f"{tmp_path}/val/2.jpg", "image_id": 0},
        {"key": "x/1.jpg", "uri": f"{tmp_path}/val/x/1.jpg", "image_id": 9},
    ]
    assert lines(planned(uri, store=store)) == expected
    assert lines(planned(uri, store=store, images_root=str(tmp_path / "val"))) == expected
    beside = coco(tmp_path / "val/labels.json", images)
    assert lines(planned(beside, store=store)) == expected
    assert (
        lines(planned(coco(tmp_path / "b/c.json", images[::-1]), store=store, images_root=f"{tmp_path}/val/"))
        == expected
    )


def test_coco_of_another_folder_asks_for_it(tmp_path: Path, store: Store) -> None:
    """A run in which every image is "missing", for want of one setting."""
    fill(tmp_path / "photos", ["1.jpg", "2.jpg"], store)
    uri = coco(tmp_path / "annotations/instances_val.json", [{"id": 1, "file_name": "1.jpg"}])
    assert refusal(uri, store=store) == (
        f"{uri}: of its images, '1.jpg' and 0 others were looked for, and none is in {tmp_path}/annotations nor in "
        f"{tmp_path}/val; set input.images to the folder in which its file_names start."
    )
    assert f"none is in {tmp_path}/val;" in refusal(uri, store=store, images_root=str(tmp_path / "val"))
    assert keys(planned(uri, store=store, images_root=str(tmp_path / "photos"))) == ["1.jpg"]


def test_a_few_missing_coco_images_do_not_stop_the_plan(tmp_path: Path, store: Store) -> None:
    """A large set refused because its first image was lost."""
    fill(tmp_path, [f"{number:03d}.jpg" for number in range(1, 100)], store)
    images = [{"id": number, "file_name": f"{number:03d}.jpg"} for number in range(100)]
    assert len(keys(planned(coco(tmp_path / "all.json", images), store=store))) == 100


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (None, "is no COCO file: it has no list `images` with at least one image."),
        ([], "is no COCO file: it has no list `images` with at least one image."),
        ([{"id": 1, "file_name": "a.jpg"}, {"id": 2}], "images[1] has no file_name."),
        ([{"id": 1, "file_name": 7}], "images[0] has no file_name."),
        ([5], "images[0] has no file_name."),
        ([{"file_name": "a.jpg"}], "images[0] (a.jpg) has the id None; accepted are whole numbers from 0 to 2^53 - 1."),
        ([{"id": "1", "file_name": "a.jpg"}], "images[0] (a.jpg) has the id '1'; accepted are whole numbers"),
        ([{"id": True, "file_name": "a.jpg"}], "images[0] (a.jpg) has the id True; accepted are whole numbers"),
        ([{"id": -1, "file_name": "a.jpg"}], "images[0] (a.jpg) has the id -1; accepted are whole numbers"),
        ([{"id": 1 << 53, "file_name": "a.jpg"}], "images[0] (a.jpg) has the id 9007199254740992; accepted"),
        ([{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "images[1] (b) has the id 1 of an earlier image"),
    ],
)
def test_a_wrong_coco_file_says_where(images: Any, sentence: str, tmp_path: Path, store: Store) -> None:
    """A traceback with a KeyError, for a file of a gigabyte."""
    assert sentence in refusal(coco(tmp_path / "a.json", images), store=store, format="coco")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"images": [{"id": 1', "\udcff", "[1, 2]", '"images"', "7"])
def test_what_is_no_coco_file_is_told(text: str, tmp_path: Path, store: Store) -> None:
    """A traceback for a results file, or for something that is no JSON at all."""
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert refusal(path, store=store).startswith(f"{path} is no ")


def test_two_coco_files_of_the_same_images_are_one(tmp_path: Path, store: Store) -> None:
    """Two shards with the same id, where instances_val.json stands beside person_keypoints_val.json."""
    fill(tmp_path / "val", ["1.jpg"], store)
    for name in ("instances_val.json", "person_keypoints_val.json"):
        coco(tmp_path / "annotations" / name, [{"id": 1, "file_name": "1.jpg"}])
    assert keys(planned(tmp_path / "annotations", store=store)) == ["1.jpg"]


def test_annotations_are_not_kept(tmp_path: Path, store: Store) -> None:
    """An image missed because its object is parsed with the annotations left out."""
    images = [{"license": {"id": 3}, "file_name": "1.jpg", "id": 5, "annotations": [{"id": 1}], "crop": {"box": [1]}}]
    fill(tmp_path, ["1.jpg"], store)
    assert lines(planned(coco(tmp_path / "a.json", images), store=store))[0]["image_id"] == 5


def test_a_parquet_without_images_is_told_before_the_run(tmp_path: Path, store: Store) -> None:
    """A thousand failed shards for one wrong column name."""
    pq.write_table(pa.table({"text": ["a"], "pixels": [b"b"]}), tmp_path / "a.parquet")
    message = refusal(tmp_path, store=store)
    assert message.startswith(f"{tmp_path}/a.parquet has text (string), pixels (binary), and none of these is known")
    assert len(planned(tmp_path, store=store, image_column="pixels")) == 1
    assert "has no column 'id', which input.key_column names" in refusal(
        tmp_path, store=store, image_column="pixels", key_column="id"
    )


def test_a_damaged_parquet_does_not_stop_the_plan(tmp_path: Path, store: Store) -> None:
    """A run of good shards that cannot start because the first one is damaged."""
    fill(tmp_path, ["a.parquet", "b.parquet"], store)
    assert len(planned(tmp_path, store=store)) == 2


def test_secrets_stay_out_of_the_sentences(store: Store) -> None:
    """A password that reaches the log through an error message."""
    with pytest.raises((UserError, NotFoundError, UnreachableError)) as caught:
        planned("http://user:secret@127.0.0.1:9/a.tar", store=Store(Patience(attempts=1, connect_s=1.0, read_s=1.0)))
    assert "secret" not in str(caught.value)
