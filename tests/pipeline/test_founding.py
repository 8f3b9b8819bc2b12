"""Founding a run: two drivers that begin it at once, and what is written before the manifest."""

from dataclasses import replace

import pytest

from pipeline import founding, ledger
from pipeline.errors import UserError
from pipeline.labelers import build
from pipeline.records import LabelerInfo
from pipeline.store import join
from tests.small_runs import config_of, make_inputs


@pytest.fixture
def config(tmp_path, place):
    return config_of(make_inputs(tmp_path / "in", 3), join(place, "run"))


@pytest.fixture
def labeler(config, store):
    one = build(config.labeler, store)
    return LabelerInfo(fingerprint=one.fingerprint, categories=one.categories)


def test_two_drivers_that_begin_at_once_share_the_run(store, config, labeler):
    """The second of two cluster jobs of the same run ended with a refusal, though there was nothing to refuse."""
    (first, was_there), (second, _) = (founding.open_run(config, store) for _ in range(2))
    assert not was_there
    assert first.run_id != second.run_id
    mine = founding.found(config, first, labeler, store)
    assert founding.found(config, second, labeler, store) == mine == ledger.read_manifest(store, config.output.uri)
    assert mine.run_id == first.run_id


def test_a_run_of_other_shards_is_not_joined(store, config, labeler, tmp_path):
    """A driver that works on shards which the run does not have would label for nobody."""
    first, _ = founding.open_run(config, store)
    (tmp_path / "in" / "2.tar").rename(tmp_path / "in" / "other.tar")
    second, _ = founding.open_run(config, store)
    founding.found(config, first, labeler, store)
    with pytest.raises(UserError, match="3, of which 1 are not in this driver's plan; 1 of the 3 planned here are not"):
        founding.found(config, second, labeler, store)
    assert ledger.read_manifest(store, config.output.uri).shards == first.shards


def test_a_run_of_another_labeler_or_config_is_not_joined(store, config, labeler):
    """Labels of two kinds in one run, because two people chose the same place."""
    first, _ = founding.open_run(config, store)
    founding.found(config, first, labeler, store)
    with pytest.raises(UserError, match=r"made differently \(labeler fingerprint: .* -> other\)"):
        founding.found(config, first, replace(labeler, fingerprint="other"), store)
    changed = replace(config, labeler=replace(config.labeler, max_instances=7))
    with pytest.raises(UserError, match=r"labeler\.max_instances: .* -> 7"):
        founding.found(changed, replace(first, config=changed.labels_depend_on()), labeler, store)


def test_listings_are_written_before_the_manifest(store, tmp_path, labeler):
    """A shard whose listing is missing cannot be labelled, and the manifest says for good that it is there."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(7):
        (folder / f"{number}.png").write_bytes(b"an image")
    config = config_of(folder, str(tmp_path / "run"))
    config = replace(config, input=replace(config.input, images_per_shard=2))
    manifest, _ = founding.open_run(config, store)
    assert [shard.format for shard in manifest.shards] == ["listing"] * 4
    assert all(store.exists(join(config.output.uri, shard.uri)) for shard in manifest.shards)
    assert not (tmp_path / "run/manifest.json").exists()
