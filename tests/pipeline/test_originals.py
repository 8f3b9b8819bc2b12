"""The images of a run, read again from where they were."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import originals, runs
from pipeline.errors import ShardError
from pipeline.store import Store
from tests.fakes import draw
from tests.small_runs import label, make_inputs, make_run


def test_each_row_gets_its_own_image(store: Store, tmp_path: Path) -> None:
    """A mask that is drawn over another image, or handed over with it, is worse than none."""
    make_run(store, str(tmp_path / "run"), tmp_path / "inputs")
    labels = runs.opened(store, str(tmp_path / "run"))
    pairs = [pair for shard, commit in labels.shards() for pair in originals.rows_with_images(labels, shard, commit)]
    assert [row.key for row, _ in pairs] == [row.key for row in labels.all_rows()]
    for row, record in pairs:
        if row.status != "quarantined":
            shard, image = row.key.removesuffix(".png").split("-")
            assert record.data == draw(10 * int(shard) + int(image))


def test_only_the_wanted_ones(store: Store, tmp_path: Path) -> None:
    """A gallery of a hundred images must not fetch a million."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.png").write_bytes(draw(number))
    label(store, str(folder), str(tmp_path / "run"))
    labels = runs.opened(store, str(tmp_path / "run"))
    ((shard, _),) = labels.shards()
    assert [record.key for record in originals.read(labels, shard, ["6.png", "2.png"])] == ["2.png", "6.png"]
    assert list(originals.read(labels, shard, [])) == []


def test_a_shard_that_was_replaced_is_refused(store: Store, tmp_path: Path) -> None:
    """Masks of the old images must not be laid over the new ones."""
    make_run(store, str(tmp_path / "run"), tmp_path / "inputs", shards=1)
    make_inputs(tmp_path / "other", 2)
    (tmp_path / "other/1.tar").replace(tmp_path / "inputs/0.tar")
    labels = runs.opened(store, str(tmp_path / "run"))
    ((shard, _),) = labels.shards()
    with pytest.raises(ShardError):
        list(originals.read(labels, shard))
