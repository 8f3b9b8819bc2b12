"""Which images share a batch, and the order of their rows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.batches import InOrder, alike

items = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=60)  # kind, bytes


@given(items, st.integers(1, 6), st.integers(1, 20), st.integers(0, 40))
def test_each_item_is_in_one_batch_of_its_kind(given_items, size, window, window_bytes):
    """Images that are lost, doubled or padded to another's size; and memory that grows while a rare one waits."""
    taken = []

    def read():
        for number, (kind, nbytes) in enumerate(given_items):
            waiting = [one for one in range(number) if one not in taken]
            assert all(number - one <= window for one in waiting)
            kinds = {given_items[one][0] for one in waiting}
            assert len(kinds) <= 1 or sum(given_items[one][1] for one in waiting) <= window_bytes
            assert all(sum(given_items[one][0] == kind for one in waiting) < size for kind in kinds)
            yield number, kind, nbytes

    arguments = {"size": size, "window": window, "window_bytes": window_bytes}
    for batch in alike(read(), lambda one: one[1], lambda one: one[2], **arguments):
        assert 1 <= len(batch) <= size
        assert len({kind for _, kind, _ in batch}) == 1
        numbers = [number for number, _, _ in batch]
        assert numbers == sorted(numbers)
        taken += numbers
    assert sorted(taken) == list(range(len(given_items)))


def test_images_of_two_shapes_fill_their_batches():
    """A GPU that gets one image at a time because every second one is a portrait."""
    batches = list(alike(range(64), lambda one: one % 2, lambda _: 1, size=8, window=128, window_bytes=1000))
    assert [len(batch) for batch in batches] == [8] * 8


@given(st.permutations(range(12)), st.lists(st.integers(1, 4), min_size=12))
def test_rows_come_out_in_order(numbers, sizes):
    """Rows of the output that are not in the order of the input."""
    order, out = InOrder(), []
    for size in sizes:
        chunk, numbers = numbers[:size], numbers[size:]
        out += order.add((number, str(number)) for number in chunk)
    assert out == [str(number) for number in range(12)]
