"""What an audit rests on: bounds that hold as often as they say, and a sample that prefers nothing."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.audit import bounds, sampling
from pipeline.audit.bounds import Stratum
from pipeline.audit.sampling import Sampler, Slices
from pipeline.errors import UserError
from pipeline.records import ImageLabels, Instances


def row(key: str, categories: list[int], scores: list[float] | None = None) -> ImageLabels:
    number = len(categories)
    instances = Instances(
        category_ids=np.array(categories, np.int32),
        scores=np.array([0.9] * number if scores is None else scores, np.float32),
        boxes=np.zeros((number, 4), np.float32),
        areas=np.ones(number, np.int64),
        counts=tuple("01" for _ in categories),
    )
    image_id = int(re.sub(r"\D", "", key) or 0)
    return ImageLabels(key=key, image_id=image_id, uri="", height=1, width=1, instances=instances, status="labelled")


# The bounds.


@given(
    of=st.integers(1, 3000),
    share=st.floats(0, 1),
    confidence=st.sampled_from([0.8, 0.95, 0.99]),
)
def test_bounds_are_those_of_clopper_and_pearson(of: int, share: float, confidence: float) -> None:
    """A bound that is a little too good is a promise that is broken more often than it says."""
    right = round(share * of)
    low, high = bounds.interval(right, of, confidence)
    expected = stats.binomtest(right, of).proportion_ci(confidence, method="exact")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(right=st.floats(1, 1e6), wrong=st.floats(1, 1e6))
def test_bounds_of_effective_sizes_leave_out_what_they_should(right: float, wrong: float) -> None:
    """Effective sample sizes are no whole numbers, and may be large."""
    low, high = bounds.interval(right, right + wrong)
    assert stats.beta.cdf(low, right, wrong + 1) == pytest.approx(0.025, abs=1e-8)
    assert stats.beta.sf(high, right + 1, wrong) == pytest.approx(0.025, abs=1e-8)


@pytest.mark.parametrize(
    ("sizes", "shares", "judged"),
    [
        ([100_000], [0.9], [50]),
        ([100], [0.96], [60]),
        ([1000, 9000], [0.5, 0.98], [40, 40]),
        ([2000] * 3, [0.99] * 3, [30] * 3),
        ([10_000, 500, 50], [0.95, 0.6, 0.3], [60, 60, 50]),
    ],
)
def test_bounds_hold_as_often_as_they_say(sizes: list[int], shares: list[float], judged: list[int]) -> None:
    """Strata that were found without a fault have no variance, and bounds from it would be a point."""
    random = np.random.default_rng(3)
    right = [round(size * share) for size, share in zip(sizes, shares, strict=True)]
    truth = sum(right) / sum(sizes)
    held = 0
    for _ in range(400):
        drawn = [int(random.hypergeometric(r, n - r, k)) for r, n, k in zip(right, sizes, judged, strict=True)]
        found = bounds.share(
            [Stratum(size=n, answered=k, right=r) for n, k, r in zip(sizes, judged, drawn, strict=True)]
        )
        assert found.low is not None
        assert found.high is not None
        held += found.low - 1e-9 <= truth <= found.high + 1e-9
    assert held >= 0.93 * 400


def test_classes_count_by_their_masks_in_the_run() -> None:
    """A rare class has as many masks in the sample as a common one: a plain mean would let it decide."""
    found = bounds.share([Stratum(size=9000, answered=10, right=10), Stratum(size=1000, answered=10, right=0)])
    assert found.value == pytest.approx(0.9)
    assert (found.answered, found.covered) == (20, 1)
    partly = bounds.share([Stratum(size=9000, answered=10, right=10), Stratum(size=1000, answered=0, right=0)])
    assert (partly.value, partly.covered) == (1, 0.9)


def test_what_was_judged_in_full_is_known() -> None:
    """A class of thirty masks, all judged, needs no bound."""
    found = bounds.share([Stratum(size=30, answered=30, right=27)])
    assert (found.value, found.low, found.high) == (0.9, 0.9, 0.9)
    assert bounds.decide(found, 30, 0.9) == ("accepted", None)


def test_nothing_answered_is_no_share() -> None:
    """Zero of zero is neither good nor bad."""
    found = bounds.share([Stratum(size=30, answered=0, right=0)])
    assert (found.value, found.low, found.high) == (None, None, None)
    assert bounds.decide(found, 30, 0.9) == ("not decided", None)


@pytest.mark.parametrize(
    ("right", "answered", "decision", "needed"),
    [(59, 59, "accepted", None), (58, 58, "not decided", 59), (50, 100, "rejected", None), (20, 20, "not decided", 59)],
)
def test_a_decision_is_as_sure_as_it_says(right: int, answered: int, decision: str, needed: int | None) -> None:
    """59 without a fault show 95 % at 95 % confidence, 58 do not: the one known case that one can look up."""
    found = bounds.share([Stratum(size=10**9, answered=answered, right=right)])
    assert bounds.decide(found, 10**9, 0.95) == (decision, needed)


def test_the_answers_that_are_needed_decide() -> None:
    """The hint is what a second round of work is planned by; and no more than there are can be asked."""
    size, target = 5000, 0.9
    found = bounds.share([Stratum(size=size, answered=100, right=94)])
    decision, needed = bounds.decide(found, size, target)
    assert decision == "not decided"
    assert needed is not None
    for answers, expected in ((needed + 5, "accepted"), (needed - 15, "not decided")):
        more = bounds.share([Stratum(size=size, answered=answers, right=round(0.94 * answers))])
        assert bounds.decide(more, size, target)[0] == expected
    near = bounds.share([Stratum(size=size, answered=100, right=90)])
    assert bounds.decide(near, size, target) == ("not decided", size)


# The sample.


def drawn(rows: list[tuple[str, ImageLabels]], per_class: int, seed: int, bands: Slices | None = None) -> list[str]:
    sampler = Sampler(per_class, seed, bands)
    for shard_id, one in rows:
        sampler.add(shard_id, one)
    return [one.name for one in sampler.drawn()]


def test_each_mask_of_a_class_has_the_same_chance() -> None:
    """A sample that prefers the first shard, or the first mask of an image, speaks for nothing else."""
    rows = [(f"shard {number // 5}", row(f"{number}.png", [1] * 3)) for number in range(20)]
    chosen: Counter[str] = Counter()
    for seed in range(600):
        chosen.update(drawn(rows, 6, seed))
    assert chosen.total() == 3600
    assert len(chosen) == 60
    assert stats.chisquare(list(chosen.values())).pvalue > 1e-3


def test_the_sample_is_of_each_class_whatever_the_order_and_bounded() -> None:
    """Resumed runs commit in another order; and a seed must give the sample that the plan says."""
    rows = [(f"shard {number // 9}", row(f"{number}.png", [1, 1, 2] + [3] * (number < 2))) for number in range(90)]
    sampler = Sampler(7, 5)
    for shard_id, one in rows:
        sampler.add(shard_id, one)
    assert all(len(heap) <= 7 for heap in sampler._kept.values())
    found = sampler.drawn()
    assert Counter(one.category_id for one in found) == {1: 7, 2: 7, 3: 2}
    assert sampler.sizes == {(1, 0): 180, (2, 0): 90, (3, 0): 2}
    assert drawn(rows[::-1], 7, 5) == [one.name for one in found]
    assert drawn(rows, 7, 6) != [one.name for one in found]


def test_bands_share_the_sample_of_a_class() -> None:
    """Of few doubtful masks, a plain sample has hardly any, and their quality stays unknown."""
    scores = [0.95] * 9 + [0.6]
    rows = [("a", row(f"{number}.png", [1] * 10, scores)) for number in range(50)]
    bands = sampling.slices("score=0.7,0.9")
    sampler = Sampler(20, 0, bands)
    for shard_id, one in rows:
        sampler.add(shard_id, one)
    assert Counter(one.band for one in sampler.drawn()) == {0: 10, 2: 10}
    assert sampler.sizes == {(1, 0): 50, (1, 2): 450}


def test_a_mask_at_an_edge_is_in_the_upper_band_and_one_without_a_value_in_its_own() -> None:
    """`0.9 and more` says so."""
    instances = replace(row("0", [1] * 3, [0.9, 0.5, 0.1]).instances, quality={"q": np.array([0.9, 0.1, np.nan], "f4")})
    assert sampling.slices("score=0.5").bands(instances).tolist() == [1, 1, 0]
    assert Slices(column="q", edges=(0.5,)).bands(instances).tolist() == [1, 0, 2]
    assert Slices(column="nowhere", edges=(0.5,)).bands(instances).tolist() == [2, 2, 2]


@pytest.mark.parametrize("text", ["score", "score=", "=1", "score=2,1", "score=nan", "score=a"])
def test_odd_slices_are_refused(text: str) -> None:
    """Bands that overlap would count masks twice."""
    with pytest.raises(UserError, match=r"--slice .*accepted is a column"):
        sampling.slices(text)


def test_each_image_has_the_same_chance() -> None:
    """Images without masks are where objects are missed, and belong to the sample."""
    rows = [(f"shard {number // 5}", row(f"{number}.png", [1] * (number % 3))) for number in range(20)]
    chosen: Counter[str] = Counter()
    for seed in range(400):
        sampler = Sampler(1, seed, scenes=5)
        for shard_id, one in rows:
            sampler.add(shard_id, one)
        assert sampler.images == 20
        chosen.update(one.key for one in sampler.scenes())
    assert chosen.total() == 2000
    assert stats.chisquare([chosen[f"{number}.png"] for number in range(20)]).pvalue > 1e-3
