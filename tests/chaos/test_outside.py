"""The judge of the chaos rounds must see what is wrong with a run, or the rounds prove nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.store import Store
from tests.chaos import plans
from tests.chaos.inputs import Drawn
from tests.chaos.outside import Found, judge, told
from tests.small_runs import IMAGES, make_run

SHARDS = 3


@pytest.fixture
def run(tmp_path: Path, store: Store) -> Path:
    make_run(store, str(tmp_path / "run"), tmp_path / "in", shards=SHARDS)
    return tmp_path / "run"


@pytest.fixture
def drawn(tmp_path: Path) -> Drawn:
    images: dict[str, str | None] = {}
    for shard in range(SHARDS):
        images |= dict.fromkeys(f"{shard}-{i}.png" for i in range(IMAGES - 1))
        images[f"{shard}-text.jpg"] = "not_an_image"
    return Drawn(folder=tmp_path / "in", shards=SHARDS, images=images, per_shard=IMAGES, settings={})


@pytest.fixture(scope="session")
def store() -> Store:
    return Store()


def first_commit(run: Path) -> tuple[Path, dict[str, Any]]:
    path = min((run / "commits").glob("*/*.json"))
    return path, json.loads(path.read_bytes())


def lose_a_commit(run: Path) -> None:
    first_commit(run)[0].unlink()


def lose_a_file(run: Path) -> None:
    (run / first_commit(run)[1]["outputs"]["coco"]["path"]).unlink()


def flip_a_bit(run: Path) -> None:
    path = run / first_commit(run)[1]["outputs"]["parquet"]["path"]
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


def commit_twice(run: Path) -> None:
    _, commit = first_commit(run)
    other = f"{'0' * 19}f"
    (run / "commits/00").mkdir(exist_ok=True)
    (run / f"commits/00/{other}.json").write_text(json.dumps({**commit, "shard_id": other}))


def miscount(run: Path) -> None:
    path, commit = first_commit(run)
    path.write_text(json.dumps({**commit, "empty": commit["empty"] + 1}))


def drop_a_row(run: Path) -> None:
    """As an engine would that drops images everywhere alike: file, counts, sums and checksum all agree."""
    path, commit = first_commit(run)
    output = commit["outputs"]["parquet"]
    table = pq.read_table(run / output["path"])
    gone = table.column("status").to_pylist().index("quarantined")
    pq.write_table(table.filter([row != gone for row in range(len(table))]), run / output["path"])
    data = (run / output["path"]).read_bytes()
    output |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    commit |= {"images": commit["images"] - 1, "quarantined": commit["quarantined"] - 1, "reasons": {}}
    path.write_text(json.dumps(commit))


def test_a_sound_run_is_found_sound(run: Path, drawn: Drawn) -> None:
    """A judge that cries over nothing would be switched off."""
    found = judge(run, drawn, None)
    assert found == Found(rows=found.rows)
    assert len(found.rows) == SHARDS * IMAGES
    assert judge(run, drawn, found.rows).faults == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lose_a_commit, "2 commits for 3 shards"),
        (lose_a_file, "is committed, but not there"),
        (flip_a_bit, "is not what was committed"),
        (commit_twice, f"{IMAGES} doubled"),
        (miscount, "and its rows say"),
        (drop_a_row, "1 lost"),
    ],
)
def test_damage_is_named(run: Path, drawn: Drawn, damage: Callable[[Path], None], words: str) -> None:
    """Each of these would otherwise pass for a run that survived."""
    damage(run)
    assert any(words in fault for fault in judge(run, drawn, None).faults)


def test_other_labels_than_those_of_the_undisturbed_run_are_named(run: Path, drawn: Drawn) -> None:
    """An attempt that labels half a shard with another model commits, and adds up, as any other."""
    rows = judge(run, drawn, None).rows
    key = next(key for key, row in rows.items() if row[0] == "labelled")
    (fault,) = judge(run, drawn, {**rows, key: (*rows[key][:-1], ())}).faults
    assert fault == f"1 not as in the undisturbed run: {key}"


def test_orphans_are_counted_and_harm_nobody(run: Path, drawn: Drawn, tmp_path: Path) -> None:
    """A reader that took every file of labels/ would see the images of a dead attempt twice."""
    _, commit = first_commit(run)
    for folder, suffix in (("labels", "parquet"), ("coco", "json")):
        theirs = run / commit["outputs"]["parquet" if suffix == "parquet" else "coco"]["path"]
        shutil.copy(theirs, run / folder / f"{commit['shard_id']}-{'0' * 12}.{suffix}")
    found = judge(run, drawn, None)
    assert found.faults == []
    assert found.orphans == 2
    assert told(str(run), drawn, os.environ, tmp_path) == []


def test_a_seed_draws_the_same_round_again() -> None:
    """A round that found a fault is drawn again to look for its cause."""
    first, again, other = (
        plans.draw(3, seed, storage="disk", kinds=("worker", "driver", "cut"), seconds=60) for seed in (7, 7, 8)
    )
    assert first == again
    assert first.events != other.events
    assert {event.kind for event in first.events} == {"worker", "driver", "cut"}
