"""The driver's folds beside a run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from pipeline import ledger
from pipeline.driver.folding import Folding
from pipeline.store import Store
from tests.small_runs import make_run


def test_commits_are_folded_when_it_pays_and_not_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Status of a large run would read each commit by itself; a fold for each shard would be no better."""
    store, uri = Store(), str(tmp_path / "run")
    manifest = make_run(store, uri, tmp_path / "in", shards=3)
    monkeypatch.setattr(ledger, "fold", partial(ledger.fold, least=1))
    with Folding(store, uri) as folding:
        folding.consider(manifest, 3)
        assert folding.last is None  # far from enough
        monkeypatch.setattr(ledger, "worth_folding", lambda unfolded, done: unfolded >= 3)
        folding.consider(manifest, 3)
        assert folding.last is not None
        assert folding.last.result() == 3
        folding.consider(manifest, 3)
        assert folding.last.result() == 3
    assert len(list(store.list(f"{uri}/folds/"))) == 1
