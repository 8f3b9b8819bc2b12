"""Careful attempts: what they write down before each step, and that they change no label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline import runs, trails
from pipeline.config import LabelConfig
from pipeline.errors import StoreError
from pipeline.records import Instances, Pixels
from pipeline.store import Store, join
from pipeline.trails import Trail
from pipeline.worker import Run, label_shard
from tests.fakes import POISON, ThresholdLabeler, draw, write_tar
from tests.small_runs import config_of, found_run

IMAGES, BAD = 11, 6
BATCH = 2  # of `config_of`


class DyingError(BaseException):
    """Ends an attempt at once, as the death of its process does."""


class MortalLabeler(ThresholdLabeler):
    """Dies at an image whose first pixel is pure red."""

    def label(self, images: Sequence[Pixels]) -> list[Instances]:
        if any(tuple(image[0, 0]) == POISON for image in images):
            raise DyingError
        return super().label(images)


@pytest.fixture
def poisoned(tmp_path: Path) -> LabelConfig:
    files = {f"{i}.png": draw(i, poison=i == BAD) for i in range(IMAGES)}
    write_tar(tmp_path / "in/0.tar", files)
    return config_of(tmp_path / "in", str(tmp_path / "out"))


def attempt(config: LabelConfig, strikes: int) -> Trail | None:
    """An attempt at the one shard that dies -> the trail that it leaves."""
    store, uri = Store(), config.output.uri
    if not store.exists(join(uri, "manifest.json")):
        found_run(store, config)
    (shard,) = runs.ledger.read_manifest(store, uri).shards
    run = Run(id="0123456789ab", uri=uri, config=config)
    with pytest.raises(DyingError):
        label_shard(shard, run=run, store=store, labeler=MortalLabeler(config.labeler, store), strikes=strikes)
    return trails.read(store, uri, shard.id, strikes=strikes)


def test_the_second_attempt_finds_the_batch_and_the_third_the_image(poisoned: LabelConfig) -> None:
    """Among thousands of images of a shard, nobody finds the one that kills by looking."""
    assert attempt(poisoned, 0) is None  # the first goes at full speed
    second = attempt(poisoned, 1)
    assert second == Trail(strikes=1, step="labeling", first=6, count=2, keys=("6.png", "7.png"))
    third = attempt(poisoned, 2)
    assert third == Trail(strikes=2, step="labeling", first=6, count=1, keys=("6.png",))


def test_a_death_while_reading_or_decoding_is_not_laid_on_another_image(
    poisoned: LabelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decoder that takes the process with it dies before the labeler has seen the image."""
    from pipeline.decoding import Decoding

    whole = Decoding.one

    def one(self: Decoding, record):  # type: ignore[no-untyped-def]
        if record.key == f"{BAD}.png":
            raise DyingError
        return whole(self, record)

    monkeypatch.setattr(Decoding, "one", one)
    attempt_at_images = Trail(strikes=2, step="decoding", first=6, count=1, keys=("6.png",))
    assert attempt(poisoned, 1) == Trail(strikes=1, step="reading", first=6, count=2)
    assert attempt(poisoned, 2) == attempt_at_images


def test_careful_attempts_give_the_same_rows_and_leave_no_trail(poisoned: LabelConfig, tmp_path: Path) -> None:
    """A shard that was struck by a dying node, and not by an image, must end like any other."""
    store = Store()
    found: dict[int, list[tuple[object, ...]]] = {}
    for strikes in range(3):
        config = config_of(tmp_path / "in", str(tmp_path / f"out{strikes}"))
        manifest, labeler = found_run(store, config)
        uri, (shard,) = config.output.uri, manifest.shards
        if strikes:
            before = Trail(strikes=strikes - 1, step="labeling", first=3, count=2, keys=("3.png", "4.png"))
            trails.note(store, uri, shard.id, before)
        label_shard(
            shard, run=Run(id="0123456789ab", uri=uri, config=config), store=store, labeler=labeler, strikes=strikes
        )
        rows = runs.read_rows(store, uri)
        found[strikes] = [(r.key, r.image_id, r.status, r.instances.counts, tuple(r.instances.scores)) for r in rows]
        assert not store.exists(join(uri, "trails", f"{shard.id}.json"))
    assert len(found[0]) == IMAGES
    assert found[0] == found[1] == found[2]


def test_a_trail_is_only_a_hint(tmp_path: Path) -> None:
    """That of another attempt, a damaged one, or none at all must not name an innocent image, nor stop anything."""
    store, uri, shard = Store(), str(tmp_path), "0" * 20
    assert trails.read(store, uri, shard, strikes=1) is None
    trails.note(store, uri, shard, Trail(strikes=1, step="reading", first=0, count=8))
    assert trails.read(store, uri, shard, strikes=1) is not None
    assert trails.read(store, uri, shard, strikes=2) is None
    (tmp_path / "trails" / f"{shard}.json").write_bytes(b"{")
    assert trails.read(store, uri, shard, strikes=1) is None


def test_a_trail_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """An attempt that goes on in the dark would name no image."""
    (tmp_path / "trails").write_text("a file where a folder should be")
    with pytest.raises(StoreError, match="trails"):
        trails.note(Store(), str(tmp_path), "0" * 20, Trail(strikes=1, step="reading", first=0, count=8))
