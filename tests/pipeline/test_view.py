"""Views: thresholds and other classes, over what is stored."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from pipeline import calibration, runs, taxonomy
from pipeline.errors import UserError
from pipeline.records import Category
from pipeline.store import Store
from pipeline.view import View
from tests.small_runs import make_run


def read(text: str, folder: Path, store: Store) -> taxonomy.Taxonomy:
    path = folder / "classes.yaml"
    path.write_text(text)
    return taxonomy.read(str(path), store)


@pytest.fixture(scope="module")
def run(store: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run with the classes bright (1) and dark (7)."""
    folder = tmp_path_factory.mktemp("view")
    make_run(store, str(folder / "run"), folder / "inputs")
    return str(folder / "run")


@pytest.mark.parametrize(
    ("text", "categories", "ids"),
    [
        ("dark: shadow", [(1, "bright"), (7, "shadow")], {1: 1, 7: 7}),
        ("dark: bright", [(1, "bright")], {1: 1, 7: 1}),
        ("{bright: thing, dark: thing}", [(1, "thing")], {1: 1, 7: 1}),
        ("{bright: dark, dark: bright}", [(1, "dark"), (7, "bright")], {1: 1, 7: 7}),
        ("dark: null", [(1, "bright")], {1: 1}),
    ],
)
def test_renamed_merged_and_dropped(
    text: str, categories: list[tuple[int, str]], ids: dict[int, int], run: str, store: Store, tmp_path: Path
) -> None:
    """A mask that comes out under another class than the file says spoils the training set it goes into."""
    labels = runs.opened(store, run, View(taxonomy=read(text, tmp_path, store)))
    assert labels.categories == tuple(Category(id=id, name=name) for id, name in categories)
    for raw, seen in zip(runs.read_rows(store, run), labels.all_rows(), strict=True):
        kept = [
            (ids[id], counts)
            for id, counts in zip(raw.instances.category_ids.tolist(), raw.instances.counts, strict=True)
            if id in ids
        ]
        assert list(zip(seen.instances.category_ids.tolist(), seen.instances.counts, strict=True)) == kept
        assert (seen.status == "labelled") == bool(kept)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cat: animal", "'cat'.*bright, dark"),
        ("- dark", "holds no mapping"),
        ("dark: [a, b]", "'dark' to"),
        ("dark: {", "cannot be read"),
        ("", "holds no mapping"),
        ("dark: a\nbright: b\ndark: c", r"names the class 'dark' more than once; name each class once"),
        (f"dark: {list(range(1000))}", r"maps 'dark' to \[0, 1, 2, 3, 4, 5, \.\.\.\]; accepted"),
        (
            "dark: [&a [x,x,x,x,x,x,x,x,x], "
            + ", ".join(f"&{new} [{','.join([f'*{old}'] * 9)}]" for old, new in pairwise("abcdefghi"))
            + "]",
            r"maps 'dark' to \[\[\.\.\.\], .*; accepted",
        ),
    ],
)
def test_a_file_that_is_no_taxonomy_is_one_sentence(
    text: str, words: str, run: str, store: Store, tmp_path: Path
) -> None:
    """A class that was mistyped would stay as it is, and nobody would notice."""
    with pytest.raises(UserError, match=words):
        runs.opened(store, run, View(taxonomy=read(text, tmp_path, store)))


def test_a_file_that_is_not_there(store: Store, tmp_path: Path) -> None:
    """One sentence that names the option."""
    with pytest.raises(UserError, match="--taxonomy"):
        taxonomy.read(str(tmp_path / "none.yaml"), store)


def test_a_file_that_is_too_large_is_a_mistake_of_the_user(store: Store, tmp_path: Path) -> None:
    """An exit status of 1 would say that something is wrong with the run."""
    with (tmp_path / "images.yaml").open("wb") as file:
        file.truncate(17 << 20)
    with pytest.raises(UserError, match=r"^--taxonomy: .*images\.yaml has more than"):
        taxonomy.read(str(tmp_path / "images.yaml"), store)
    with pytest.raises(UserError, match=r"^--thresholds: .*images\.yaml has more than"):
        calibration.read(str(tmp_path / "images.yaml"), store)


def test_an_image_that_loses_its_masks_is_empty(run: str, store: Store) -> None:
    """A filter by status would show it as labelled, with nothing to see."""
    rows = list(runs.opened(store, run, View(min_score=1.0)).all_rows())
    assert {row.status for row in rows if not len(row.instances)} == {"empty", "quarantined"}


def test_only_some_images(run: str, store: Store) -> None:
    """A queue of a hundred images must not read a million."""
    labels = runs.opened(store, run)
    commits = list(labels.commits())
    wanted = {commits[1].shard_id: {"1-0.png", "1-3.png"}}
    some = labels.only(wanted)
    assert [row.key for row in some.all_rows()] == ["1-0.png", "1-3.png"]
    assert some.done.total() == 1
