"""What `patchlabel quarantine` tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import cli, ledger
from pipeline.records import Failure
from pipeline.store import Store
from tests.small_runs import make_run


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run of four shards: two are done, one was set aside, and one that was is done since."""
    store, uri = Store(), str(tmp_path / "run")
    manifest = make_run(store, uri, tmp_path / "in", shards=4, done=2)
    for number in (1, 3):
        shard = manifest.shards[number]
        failure = Failure(
            shard_id=shard.id,
            uri=shard.uri,
            attempts=3,
            error="the worker process died, while labeling the image '3-2.png'",
            images=("3-2.png",),
        )
        ledger.record_failure(store, uri, failure)
    return uri


def test_what_was_set_aside_is_named_with_its_reason(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A lead who must answer for every mask has to know which images have none, and why."""
    assert cli.main(["quarantine", run, "--images"]) == 0
    lines = capsys.readouterr().out.splitlines()
    died = "the worker process died, while labeling the image '3-2.png' (after 3 attempts)"
    assert [line for line in lines if line.startswith("shard")] == [f"shard  {Path(run).parent}/in/3.tar: {died}"]
    why = "not_an_image: the bytes begin with b'this is no image'; accepted are JPEG, PNG, WebP, TIFF, BMP"
    assert [line for line in lines if line.startswith("image")] == [f"image  {i}-text.jpg: {why}" for i in range(2)]
    assert lines[-1] == "1 shard and 2 images set aside (2 not_an_image)"


def test_programs_get_json(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The list is what a script takes to mend the images."""
    assert cli.main(["quarantine", run, "--json", "--images"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [shard["images"] for shard in found["shards"]] == [["3-2.png"]]
    assert [image["key"] for image in found["quarantined"]] == ["0-text.jpg", "1-text.jpg"]
    assert (found["images"], found["reasons"]) == (2, {"not_an_image": 2})


def test_a_run_without_faults_has_nothing_set_aside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And no run at all is told from a run without faults."""
    make_run(Store(), str(tmp_path / "run"), tmp_path / "in", shards=1, done=0)
    assert cli.main(["quarantine", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == "0 shards and 0 images set aside\n"
    assert cli.main(["quarantine", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/none is no labeling run: it holds no manifest.json\n"
