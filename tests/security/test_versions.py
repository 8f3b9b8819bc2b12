"""Runs that are taken up again by another version of the package, of the schema, of the labeler or of the config."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pipeline
from jobs import label
from pipeline import cli, founding, ledger
from pipeline.config import LabelConfig
from pipeline.errors import UserError
from pipeline.records import LabelerInfo
from pipeline.store import Store
from tests.refusals import Refused
from tests.small_runs import commit_of, config_of, make_run

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def run(tmp_path: Path, store: Store) -> LabelConfig:
    """The config of a run of two shards, one of them labelled, made by this version."""
    make_run(store, str(tmp_path / "run"), tmp_path / "in", done=1)
    config = config_of(tmp_path / "in", str(tmp_path / "run"))
    change_manifest(config, lambda manifest: manifest.update(version=pipeline.__version__))
    return config


def change_manifest(config: LabelConfig, change: Change) -> None:
    """Have the manifest say what another version of the package would have written."""
    path = Path(config.output.uri) / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest))


def contents(folder: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def differs_in(config: LabelConfig, store: Store) -> str:
    """What a resumed run is refused for."""
    before = contents(config.output.uri)
    with pytest.raises(UserError) as refusal:
        founding.open_run(config, store)
    assert contents(config.output.uri) == before
    found = re.search(r"made differently \((.*)\); give another output.uri, or go on", str(refusal.value))
    assert found, refusal.value
    return found[1]


def another(version: str, *, number: int) -> str:
    """A version that differs from this one in one of its three numbers.

    >>> another("0.1.0", number=1)
    '0.2.0'
    """
    parts = version.split(".")
    parts[number] = str(int(parts[number]) + 1)
    return ".".join(parts)


def test_a_run_of_the_same_version_goes_on(run: LabelConfig, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """A refusal of what is no change, or a word about versions where there is one only."""
    caplog.set_level(logging.INFO)
    manifest, founded = founding.open_run(run, store)
    assert founded
    assert len(ledger.pending(manifest, ledger.committed_ids(store, run.output.uri))) == 1
    assert not caplog.messages


def test_another_last_number_is_taken(
    run: LabelConfig, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run of weeks that a mere fix of a fault, which labels alike, would end."""
    caplog.set_level(logging.INFO)
    fixed = another(pipeline.__version__, number=2)
    monkeypatch.setattr(founding, "__version__", fixed)
    assert founding.open_run(run, store)[1]
    assert caplog.messages == [f"the run was begun by version {pipeline.__version__} of this package; this is {fixed}"]


@pytest.mark.parametrize("number", [0, 1])
def test_another_series_is_refused(
    run: LabelConfig, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """Labels of two versions mixed in one run, without a word; or no way to mix them for who wants that."""
    other = another(pipeline.__version__, number=number)
    monkeypatch.setattr(founding, "__version__", other)
    expected = f"package version: {pipeline.__version__} -> {other}"
    assert differs_in(run, store) == expected
    accepting = replace(run, run=replace(run.run, accept_changes=True))
    assert founding.open_run(accepting, store)[1]
    assert f"{expected}); going on all the same, as run.accept_changes says" in caplog.text


@pytest.mark.parametrize("version", ["0.1.0.dev3", "unknown", ""])
def test_a_version_that_promises_nothing_is_refused(run: LabelConfig, store: Store, version: str) -> None:
    """A pre-release taken for the release, or a traceback for what is no version."""
    change_manifest(run, lambda manifest: manifest.update(version=version))
    assert differs_in(run, store) == f"package version: {version} -> {pipeline.__version__}"


def test_another_schema_is_refused_by_the_command(refused: Refused, config: Path, store: Store, tmp_path: Path) -> None:
    """Files of two schemas in one run; a damaged manifest named where it is only a later one."""
    found_by_hand(config, store)
    for version in (0, 2):
        change_manifest(config_at(config), lambda manifest, version=version: manifest.update(schema_version=version))
        before = contents(str(tmp_path))
        assert refused(label.main, config) == (
            f"{tmp_path}/out/manifest.json has schema version {version}, and this version of the package reads 1"
        )
        assert contents(str(tmp_path)) == before
    assert cli.main(["status", str(tmp_path / "out")]) == 2


def test_a_manifest_of_a_later_schema_with_other_keys(refused: Refused, config: Path, store: Store) -> None:
    """A later version's manifest, whose keys nobody knows today, taken for a damaged one."""
    found_by_hand(config, store)

    def change(manifest: dict[str, Any]) -> None:
        manifest.update(schema_version=2, parts=manifest.pop("shards"))

    change_manifest(config_at(config), change)
    assert "has schema version 2, and this version of the package reads 1" in refused(label.main, config)


def test_all_differences_are_named_at_once(refused: Refused, config: Path, store: Store, tmp_path: Path) -> None:
    """A user who mends one difference only to be told of the next."""
    found_by_hand(config, store)
    change_manifest(config_at(config), lambda manifest: manifest.update(version="9.9.9"))
    before = contents(str(tmp_path))
    sentence = refused(label.main, config, "labeler.score_threshold=0.5", "limits.max_image_pixels=1000")
    assert (
        "(labeler.score_threshold: 0.05 -> 0.5; limits.max_image_pixels: 100000000 -> 1000; "
        f"package version: 9.9.9 -> {pipeline.__version__})"
    ) in sentence
    assert contents(str(tmp_path)) == before


def test_a_key_that_the_old_version_did_not_know(run: LabelConfig, store: Store) -> None:
    """A run that a new key ends although it is at its default; one whose labels a new key changes, that goes on."""
    change_manifest(run, lambda manifest: manifest["config"]["limits"].pop("max_image_pixels"))
    change_manifest(run, lambda manifest: manifest["config"]["labeler"].pop("precision"))
    assert founding.open_run(run, store)[1]
    changed = replace(run, labeler=replace(run.labeler, precision="bf16"))
    assert differs_in(changed, store) == 'labeler.precision: "fp32" -> "bf16"'


def test_a_key_that_a_later_version_knows(run: LabelConfig, store: Store) -> None:
    """A setting that this version cannot follow, ignored."""
    change_manifest(run, lambda manifest: manifest["config"]["labeler"].update(soft_nms={"sigma": 0.5}))
    assert differs_in(run, store) == "labeler.soft_nms.sigma: 0.5 -> not set"
    change_manifest(run, lambda manifest: manifest["config"].update(labeler="none", limits=None))
    assert "limits: null -> not set" in differs_in(run, store)


def test_another_labeler_is_refused(run: LabelConfig, store: Store) -> None:
    """Masks of two models in one run."""
    manifest, _ = founding.open_run(run, store)
    same = LabelerInfo(fingerprint=manifest.fingerprint, categories=manifest.categories)
    founding.check_labeler(run, manifest, same)
    with pytest.raises(UserError, match=f"labeler fingerprint: {manifest.fingerprint} -> 0123"):
        founding.check_labeler(run, manifest, replace(same, fingerprint="0123"))


@pytest.mark.parametrize("key", ["batch_size", "workers", "isolate_decoding"])
def test_what_cannot_change_labels_is_taken(run: LabelConfig, store: Store, key: str) -> None:
    """A run that cannot go on with a smaller batch where memory ran out, or on more workers."""
    changed = {
        "batch_size": replace(run, labeler=replace(run.labeler, batch_size=1)),
        "workers": replace(run, run=replace(run.run, workers=7, max_attempts=1)),
        "isolate_decoding": replace(run, limits=replace(run.limits, isolate_decoding=True)),
    }
    assert founding.open_run(changed[key], store)[1]


def test_commits_say_which_version_made_them(run: LabelConfig, store: Store) -> None:
    """A run of several versions of which nobody can tell which shard is whose."""
    manifest, _ = founding.open_run(run, store)
    assert commit_of(store, run.output.uri, manifest).version == pipeline.__version__


def config_at(path: Path) -> LabelConfig:
    return founding.located(pipeline.config.load(LabelConfig, str(path)))


def found_by_hand(path: Path, store: Store) -> None:
    """Found the run of a config file as the driver does, without Ray."""
    config = config_at(path)
    manifest, founded = founding.open_run(config, store)
    assert not founded
    founding.found(config, manifest, LabelerInfo(fingerprint="f", categories=()), store)
