"""Labeling a part of a run anew: what is asked for is done, everything else is the old run's, by reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import corrections, ledger, relabel, runs
from pipeline.accounting import account
from pipeline.config import LabelConfig, RelabelConfig
from pipeline.errors import UserError
from pipeline.labelers import build
from pipeline.records import Category, ImageLabels, LabelerInfo, Manifest
from pipeline.shard_list import ShardList
from pipeline.store import Store
from pipeline.verify import verify
from pipeline.worker import Run, label_shard
from tests.fakes import draw, write_tar
from tests.small_runs import commit_of, config_of, found_run, make_run

SHARDS = 3


@pytest.fixture
def old(store: Store, tmp_path: Path) -> str:
    """A finished run of three shards."""
    make_run(store, str(tmp_path / "old"), tmp_path / "inputs", shards=SHARDS)
    return str(tmp_path / "old")


def config_from(old: str, **asked: object) -> LabelConfig:
    """The config of a run beside the old one, by a labeler that finds less."""
    config = config_of(Path(old).parent / "inputs", str(Path(old).parent / "new"))
    return replace(
        config,
        labeler=replace(config.labeler, score_threshold=0.9, max_instances=1),
        run=replace(config.run, base=old, relabel=RelabelConfig(**asked)),  # type: ignore[arg-type]
    )


def work(store: Store, config: LabelConfig, *, shards: int | None = None) -> tuple[Manifest, ShardList]:
    """What the driver does, here -> the manifest, and the shards that were labelled."""
    manifest, labeler = found_run(store, config)
    todo, taken = relabel.divide(config, ShardList.of(manifest.shards), store)
    for shard in todo[:shards]:
        run = Run(id=manifest.run_id, uri=config.output.uri, config=config)
        label_shard(shard, run=run, store=store, labeler=labeler)
    relabel.carry(config, manifest, store)
    relabel.take(config, manifest, taken, store)
    return manifest, todo


def rows(store: Store, run: str) -> dict[str, ImageLabels]:
    return {row.key: row for row in runs.opened(store, run).all_rows()}


def seen(row: ImageLabels) -> tuple[object, ...]:
    """What counts in a row."""
    return row.status, row.image_id, row.instances.counts, tuple(row.instances.category_ids.tolist())


def test_shards_that_are_not_asked_for_are_the_old_ones_and_nothing_is_copied(store: Store, old: str) -> None:
    """Labels of 99 shards must neither be lost nor paid for again, when one was asked for."""
    config = config_from(old, shards=["*/1.tar"])
    _, todo = work(store, config)
    new = config.output.uri
    assert [shard.uri[-5:] for shard in todo] == ["1.tar"]
    before, after = rows(store, old), rows(store, new)
    assert after.keys() == before.keys()
    changed = {key for key in before if seen(before[key]) != seen(after[key])}
    assert changed
    assert all(key.startswith("1-") for key in changed)
    data = [info.uri for info in store.list(f"{new}/labels/")]
    assert [Path(uri).name[:20] for uri in data] == [todo[0].id]
    assert verify(store, new).faults == ()
    found = runs.status(store, new)
    assert (found.done, found.taken, found.images) == (SHARDS, SHARDS - 1, len(before))
    assert sum(images for _, images, _ in account(store, new).workers) == len(before) // SHARDS  # the rest cost nothing


@pytest.mark.parametrize("containing", [False, True])
def test_other_classes_of_an_image_stay(store: Store, old: str, containing: bool) -> None:
    """To mend one class must not touch another that was fine, nor lose an image."""
    config = config_from(old, classes=["dark"], containing=containing)
    work(store, config)
    before, after = rows(store, old), rows(store, config.output.uri)
    assert after.keys() == before.keys()
    for key, row in after.items():
        for name in ("bright", "dark"):
            number = {"bright": 1, "dark": 7}[name]
            was, now = (
                {c for c, id in zip(one.instances.counts, one.instances.category_ids, strict=True) if id == number}
                for one in (before[key], row)
            )
            assert now <= was if name == "dark" else now == was
    total = [sum((row.instances.category_ids == 7).sum() for row in one.values()) for one in (before, after)]
    assert total[1] < total[0]
    assert verify(store, config.output.uri).faults == ()


def test_containing_looks_only_at_images_that_had_the_class(
    store: Store, old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU hours of the other images are what it is there to save."""
    config = config_from(old, classes=["dark"], containing=True)
    labeler = type(build(config.labeler, store))
    looked_at: list[int] = []
    label = labeler.label
    monkeypatch.setattr(labeler, "label", lambda self, images: (looked_at.append(len(images)), label(self, images))[1])
    work(store, config)
    having = [row for row in rows(store, old).values() if 7 in row.instances.category_ids]
    assert sum(looked_at) == len(having) < SHARDS * 5


def test_a_shard_without_the_class_is_taken_by_the_worker(store: Store, tmp_path: Path) -> None:
    """It is not even read."""
    write_tar(tmp_path / "inputs/0.tar", {"grey.png": draw(4)})
    config = config_of(tmp_path / "inputs", str(tmp_path / "old"))
    manifest, labeler = found_run(store, config)
    run = Run(id=manifest.run_id, uri=config.output.uri, config=config)
    label_shard(manifest.shards[0], run=run, store=store, labeler=labeler)
    config = config_from(str(tmp_path / "old"), classes=["dark"], containing=True)
    manifest, _ = work(store, config)
    commit = commit_of(store, config.output.uri, manifest)
    assert commit.base is not None
    assert commit.base.uri == str(tmp_path / "old")
    assert verify(store, config.output.uri).faults == ()


def test_new_shards_are_labelled(store: Store, old: str, tmp_path: Path) -> None:
    """A data set that has grown: the old part is taken, the new one done."""
    write_tar(tmp_path / "inputs/9.tar", {"9-0.png": draw(90)})
    config = config_from(old)
    _, todo = work(store, config)
    assert [shard.uri[-5:] for shard in todo] == ["9.tar"]
    assert len(rows(store, config.output.uri)) == SHARDS * 6 + 1


def test_it_goes_on_where_it_stopped(store: Store, old: str) -> None:
    """Killed half way, it must neither take nor label a shard twice."""
    config = config_from(old, shards=["*/1.tar", "*/2.tar"])
    manifest, _ = work(store, config, shards=1)
    left = ShardList.of(ledger.pending(manifest, ledger.listing(store, config.output.uri).ids))
    todo, taken = relabel.divide(config, left, store)
    assert (len(todo), len(taken)) == (1, 0)


def test_what_people_corrected_stays_corrected(store: Store, old: str) -> None:
    """A better model is no reason to throw away what was paid for by hand; nor is starting the run again."""
    manifest = ledger.read_manifest(store, old)
    commit = commit_of(store, old, manifest, 1)
    row = max(runs.rows(store, old, commit), key=lambda row: len(row.instances))
    by_hand = replace(row, instances=row.instances.where(np.arange(len(row.instances)) == 0))
    said = {"by": "anna", "source": "a.json", "source_sha256": "0" * 64, "counts": {"images": 1}}
    corrections.write(store, old, manifest, {commit.shard_id: [by_hand]}, **said)  # type: ignore[arg-type]
    config = config_from(old, shards=["*/1.tar"])
    made, _ = work(store, config)
    relabel.carry(config, made, store)
    (version,) = corrections.read(store, config.output.uri).versions
    assert version.by == "anna"
    assert rows(store, config.output.uri)[row.key].instances.counts == by_hand.instances.counts
    assert verify(store, config.output.uri).faults == ()


def test_a_run_that_was_relabelled_is_a_base_like_any(store: Store, old: str, tmp_path: Path) -> None:
    """Month after month: what was taken from the first run must still be found in the third."""
    second = config_from(old, shards=["*/1.tar"])
    work(store, second)
    third = replace(
        second,
        output=replace(second.output, uri=str(tmp_path / "third")),
        run=replace(second.run, base=second.output.uri, relabel=RelabelConfig(shards=("*/2.tar",))),
    )
    work(store, third)
    found, before = rows(store, str(tmp_path / "third")), rows(store, old)
    assert all(seen(found[key]) == seen(before[key]) for key in before if key.startswith("0-"))
    assert verify(store, str(tmp_path / "third")).faults == ()


def test_a_base_whose_own_base_was_removed_is_refused(store: Store, old: str, tmp_path: Path) -> None:
    """A run that is complete by its commits, of which nothing can be read."""
    second = config_from(old, shards=["*/1.tar"])
    work(store, second)
    Path(old).rename(tmp_path / "gone")
    third = replace(
        second,
        output=replace(second.output, uri=str(tmp_path / "third")),
        run=replace(second.run, base=second.output.uri, relabel=RelabelConfig(shards=("*/2.tar",))),
    )
    with pytest.raises(UserError, match=r"run\.base: .*/old is no labeling run"):
        work(store, third)


def test_a_run_is_not_its_own_base(store: Store, old: str) -> None:
    """Its commits would name data objects of the run itself as another's, and its corrections come twice."""
    config = config_from(old, shards=["*/1.tar"])
    manifest = ledger.read_manifest(store, old)
    for uri in (old, f"{old}/"):
        own = replace(config, output=replace(config.output, uri=uri))
        with pytest.raises(UserError, match=r"run\.base: .* is output\.uri itself; give another output\.uri"):
            relabel.divide(own, ShardList.of(manifest.shards), store)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"shards": ["*/7.tar"]}, r"run\.relabel\.shards matches none of the 3 shards"),
        ({"classes": ["cat"]}, r"run\.relabel\.classes names 'cat'.*bright, dark"),
    ],
)
def test_what_fits_nothing_is_refused(store: Store, old: str, asked: dict[str, object], words: str) -> None:
    """A name that was mistyped would silently redo nothing."""
    config = config_from(old, **asked)
    manifest, _ = found_run(store, config)
    with pytest.raises(UserError, match=words):
        relabel.divide(config, ShardList.of(manifest.shards), store)


def test_a_base_of_another_input_is_refused(store: Store, old: str, tmp_path: Path) -> None:
    """All would be labelled anew, at full price."""
    make_run(store, str(tmp_path / "other"), tmp_path / "others", shards=1)
    config = replace(config_from(old), run=replace(config_from(old).run, base=str(tmp_path / "other")))
    manifest, _ = found_run(store, config)
    with pytest.raises(UserError, match="none of the 3 shards"):
        relabel.divide(config, ShardList.of(manifest.shards), store)


def test_a_labeler_of_other_classes_is_refused(store: Store, old: str) -> None:
    """Category 7 would mean one thing in half of the shards, and another in the rest."""
    info = LabelerInfo(fingerprint="f", categories=(Category(id=1, name="dark"), Category(id=7, name="bright")))
    with pytest.raises(UserError, match=r"run\.base: .* other classes"):
        relabel.check(config_from(old), info, store)


def test_a_base_changes_what_labels_depend_on(old: str) -> None:
    """A run that is resumed with another base would mix two."""
    config = config_from(old, classes=["dark"])
    assert config.labels_depend_on()["run"]["base"] == old
    assert "run" not in replace(config, run=replace(config.run, base=None, relabel=RelabelConfig())).labels_depend_on()


def test_what_was_taken_back_stays_taken_back(store: Store, old: str, tmp_path: Path) -> None:
    """Corrections that somebody undid must not come to life in the next run, where versions have other numbers."""
    manifest = ledger.read_manifest(store, old)
    commit = commit_of(store, old, manifest, 1)
    row = max(runs.rows(store, old, commit), key=lambda row: len(row.instances))
    for kept in (0, 1):
        by_hand = replace(row, instances=row.instances.where(np.arange(len(row.instances)) == kept))
        said = {"by": "anna", "source": "a.json", "source_sha256": str(kept) * 64, "counts": {"images": 1}}
        corrections.write(store, old, manifest, {commit.shard_id: [by_hand]}, **said)  # type: ignore[arg-type]
    corrections.undo(store, old, 2, by="bert")
    config = config_from(old, shards=["*/2.tar"])
    made, _ = work(store, config)
    relabel.carry(config, made, store)
    assert [one.undoes for one in corrections.read(store, config.output.uri).versions] == [0, 0, 2]
    assert rows(store, config.output.uri)[row.key].instances.counts == row.instances.counts[:1]
