"""Which image of the truth a key means."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.keys import Keys, match_keys


def truth_of(*file_names: str) -> dict[str, Any]:
    return {"images": [{"id": 10 + number, "file_name": name} for number, name in enumerate(file_names)]}


@pytest.mark.parametrize(
    ("file_name", "key"),
    [
        ("a.jpg", "a.jpg"),
        ("a.jpg", "a"),
        ("a.jpg", "a.png"),
        ("a", "a.png"),
        ("val/a.jpg", "val/a"),
        ("val/a.jpg", "a.jpg"),
        ("val/a.jpg", "a.png"),
        ("val/a.jpg", "shards/x/a"),
        ("aachen_000.left.png", "val/aachen_000.left"),
    ],
)
def test_keys_find_their_image(file_name: str, key: str) -> None:
    """Keys of a tar, a Parquet file or a folder differ from file_name in folder and extension only."""
    assert match_keys(truth_of("b.jpg", file_name), [key]) == {key: 11}


@pytest.mark.parametrize(
    ("file_names", "key", "image_id"),
    [
        (("x/a.jpg", "y/a.jpg", "a.jpg"), "a.jpg", 12),
        (("x/a.jpg", "y/a.jpg"), "y/a", 11),
        (("x/a.jpg", "y/a.jpg"), "y/a.png", 11),
        (("x/a.left.jpg", "y/a.left.jpg"), "y/a.left", 11),
        (("a.jpg", "a.png"), "a.png", 11),
        (("x/a.jpg", "x/a.png"), "y/a.png", 11),
    ],
)
def test_the_nearest_name_wins(file_names: tuple[str, ...], key: str, image_id: int) -> None:
    """With like names in two folders or formats, a key must get its own image, and must get one where it can."""
    assert match_keys(truth_of(*file_names), [key]) == {key: image_id}


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (["z.jpg", "b.jpg"], r"1 of 2 image keys match no single image of the truth \(first 'z.jpg'\).*'x/a.jpg'"),
        (["a.jpg"], r"1 of 1 image keys"),
        (["b.jpg", "b.png"], r"'b.jpg' and 'b.png' both match image 12"),
    ],
)
def test_keys_without_a_single_image_are_named(keys: list[str], sentence: str) -> None:
    """Predictions given to a guessed image, or to one image twice, would lower the figures without a sign."""
    with pytest.raises(ValueError, match=sentence):
        match_keys(truth_of("x/a.jpg", "y/a.jpg", "b.jpg"), keys)


def test_keys_that_come_in_parts_are_judged_together() -> None:
    """The second key of an image may be in the last shard of a run, and a user must see how many keys fit nowhere."""
    keys = Keys(truth_of("x/a.jpg", "y/a.jpg", "b.jpg"))

    assert [keys.match(part) for part in (["z1", "b.png"], ["x/a"], ["z2", "z3", "z4"])] == [
        {"b.png": 12},
        {"x/a": 10},
        {},
    ]
    with pytest.raises(ValueError, match=r"4 of 6 image keys .*\(first 'z1', 'z2', 'z3'\)"):
        keys.check()
    with pytest.raises(ValueError, match=r"'b.png' and 'b.jpg' both match image 12"):
        keys.match(["b.jpg"])


def test_a_run_with_more_images_is_not_matched_by_names_alone() -> None:
    """`b/1.jpg` would get the objects of `a/1.jpg`, as the truth has no other image of that name."""
    keys = Keys(truth_of("a/1.jpg", "c.jpg", "x/y/d.png"), more=True)
    assert keys.match(["b/1.jpg", "in/c.jpg", "y/d.jpg"]) == {"in/c.jpg": 11, "y/d.jpg": 12}
    assert Keys(truth_of("a/1.jpg")).match(["b/1.jpg"]) == {"b/1.jpg": 10}
