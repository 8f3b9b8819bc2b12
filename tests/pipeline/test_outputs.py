"""Places that results go to: what cannot be written is refused before the work, and nothing is left by asking."""

import contextlib
import os
from functools import partial

import pytest

from pipeline import outputs
from pipeline.errors import UnreachableError, UserError
from pipeline.store import join


def test_a_place_that_can_be_written_stays_as_it_was(store, place):
    """A file left by the check would be taken for a part of the result, or for the remains of another."""
    outputs.check_folder(store, join(place, "new/folder"), key="--out")
    outputs.check_file(store, join(place, "new.json"), key="--out", example="x.json")
    store.put(join(place, "old.json"), b"old")
    outputs.check_file(store, join(place, "old.json"), key="--out", example="x.json")
    assert [info.uri for info in store.list(join(place, ""))] == [join(place, "old.json")]
    assert store.get(join(place, "old.json")) == b"old"
    assert list(store.unfinished(place)) == []


def test_no_folder_is_made(store, tmp_path):
    """An empty one would be left where the work fails."""
    outputs.check_folder(store, str(tmp_path / "a/b"), key="--out")
    outputs.check_folder(store, (tmp_path / "a").as_uri(), key="--out")
    assert list(tmp_path.iterdir()) == []


def test_a_file_beside_where_one_is(store, tmp_path, monkeypatch):
    """A name without a folder is a file of the working directory."""
    monkeypatch.chdir(tmp_path)
    outputs.check_file(store, "new.json", key="--out", example="x.json")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_no_file_and_a_file_no_folder(store, tmp_path):
    """Told after hours of work, and in the words of the operating system."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^--out is .*/file, a file; name a folder"):
        outputs.check_folder(store, str(tmp_path / "file"), key="--out")
    example = r"^--out is .*, a folder; name the file, for example .*/x\.json"
    for folder in ("s3://bucket/f/", str(tmp_path), tmp_path.as_uri()):
        with pytest.raises(UserError, match=example):
            outputs.check_file(store, folder, key="--out", example="x.json")


def test_a_pipe_is_not_replaced(store, tmp_path):
    """--out /dev/stdout, as root, leaves a container whose standard output is a file."""
    os.mkfifo(tmp_path / "pipe")
    for uri in (str(tmp_path / "pipe"), "/dev/null", "/dev/stdout"):
        with pytest.raises(UserError, match=rf"^--out is {uri}, a device or a pipe"):
            outputs.check_file(store, uri, key="--out", example="x")


@pytest.mark.parametrize("uri", ["{}/file/x", "http://127.0.0.1:9/x", "nosuch://a/b", "/proc/nosuch/x"])
def test_what_cannot_be_written_is_named_as_it_was_given(store, tmp_path, uri):
    """A sentence about a hidden file that the user never named helps nobody."""
    (tmp_path / "file").write_text("")
    uri = uri.format(tmp_path)
    checks = (
        lambda: outputs.check_folder(store, uri, key="--report"),
        lambda: outputs.check_file(store, uri, key="--report", example="x"),
    )
    for check in checks:
        with pytest.raises(UserError, match=rf"^--report cannot be written: {uri}: ") as caught:
            check()
        assert "patchlabel-" not in str(caught.value)


@pytest.mark.parametrize("uri", ["{}/" + "n" * 300, "{}/a\0b"])
def test_a_name_that_no_file_can_have_is_one_sentence(store, tmp_path, uri):
    """What is asked of the disk before may fail in ways of its own."""
    for check in (outputs.check_folder, partial(outputs.check_file, example="x")):
        with contextlib.suppress(UserError):  # a folder beside it could be written
            check(store, uri.format(tmp_path), key="--out")


def test_a_bucket_that_does_not_exist(store, s3_uri):
    """A missing bucket was met when a COCO file of the whole run was to be uploaded."""
    with pytest.raises(UserError, match=r"^--out cannot be written: .*/all\.json: there is no such bucket"):
        outputs.check_file(store, f"{s3_uri}-missing/all.json", key="--out", example="x")


def test_storage_that_does_not_answer_is_no_mistake_of_the_user(store, tmp_path):
    """It may answer in a minute, so the exit status is another."""

    class Silent(type(store)):
        def put(self, uri, data):
            raise UnreachableError(f"{uri}: the store does not answer.")

    with pytest.raises(UnreachableError, match=r"^--out cannot be written: "):
        outputs.check_folder(Silent(), str(tmp_path), key="--out")
