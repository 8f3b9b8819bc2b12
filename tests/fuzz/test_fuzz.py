"""Short runs of the fuzzers, and properties of the parsers that stand before a decoder or a library."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ImageError
from pipeline.image_headers import announced_size, excess
from pipeline.images import decode
from pipeline.records import REASONS
from tests.fuzz import containers, images, seeds
from tests.fuzz.runner import run

IMAGES = seeds.images()


def test_every_damaged_image_is_accounted_for(tmp_path: Path) -> None:
    """One image in millions that ends its worker, vanishes, or gets a reason that no table knows."""
    tally = run(images.cases(200, 7), keep=tmp_path / "kept")
    assert tally.faults == []
    assert tally.shards == {"committed": 5}
    assert sum(tally.reasons.values()) == 200
    assert tally.reasons["labelled"] > 30
    assert {"undecodable", "truncated"} <= tally.reasons.keys()


def test_every_damaged_container_is_labelled_or_refused(tmp_path: Path) -> None:
    """One archive in thousands whose odd exception stops the run; or one taken for whole that is not."""
    tally = run(containers.cases(60, 7), keep=tmp_path / "kept")
    assert tally.faults == []
    assert tally.shards.keys() <= {"committed", "ShardError", "refused"}
    assert tally.shards.total() == 60
    assert min(tally.shards["committed"], tally.shards["ShardError"]) > 5
    assert all("\n" not in sentence and len(sentence) < 1500 for sentence in tally.said)


@pytest.mark.parametrize("name", IMAGES)
def test_the_size_is_told_from_the_header_alone(name: str) -> None:
    """Prefetching by sizes that are not those of the images; large ones noticed only once they are decoded."""
    data = IMAGES[name]
    size = announced_size(data)
    assert excess(data, 44 * 30) is None
    if name.endswith(".gif"):
        assert size is None
    else:
        assert size == (44, 30)
        assert sorted(decode(data, max_bytes=10**6, max_pixels=44 * 30).shape) == [3, 30, 44]


@settings(max_examples=300)
@given(st.data())
def test_headers_are_read_whatever_they_hold(data: st.DataObject) -> None:
    """A header that raises, where it is read before the decoder and outside of what guards that."""
    start = data.draw(st.sampled_from([*IMAGES.values(), b"\xff\xd8", b"II*\0", b"MM\0+\0\x08\0\0", b"BM", b"RIFF"]))
    place = data.draw(st.integers(0, min(len(start), 600)))
    whole = start[:place] + data.draw(st.binary(max_size=200)) + start[data.draw(st.integers(place, len(start))) :]
    size = announced_size(whole)
    assert size is None or min(size) >= 0
    absurd = excess(whole, 10**6)
    assert absurd is None or ("\n" not in absurd and len(absurd) < 200)


@settings(max_examples=150)
@given(st.sampled_from(sorted(IMAGES)), st.data())
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged metadata
def test_a_cut_image_is_refused_or_whole(name: str, data: st.DataObject) -> None:
    """Half an image labelled as if it were one, wherever it was cut; or an error of another kind."""
    whole = IMAGES[name]
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    try:
        pixels = decode(cut, max_bytes=10**6, max_pixels=10**6)
    except ImageError as error:
        reason = str(error).partition(": ")[0]
    else:
        reason = None
        np.testing.assert_array_equal(pixels, decode(whole, max_bytes=10**6, max_pixels=10**6))
    assert reason is None or reason in REASONS


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_images_and_a_thousand_containers(tmp_path: Path) -> None:
    """What two hundred do not find."""
    for cases in (images.cases(10_000, 7), containers.cases(1000, 7)):
        assert run(cases, keep=tmp_path / "kept").faults == []


def test_mutations_are_repeatable() -> None:
    """A seed that finds something else when it is run again."""
    assert list(images.fuzzed(30, 3)) == list(images.fuzzed(30, 3))
    assert len({data for _, data in images.fuzzed(30, 3)}) > 20
    assert io.BytesIO(seeds.packed(b"x")).read() == seeds.packed(b"x")
