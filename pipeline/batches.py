"""Which images go through the model together, and how their rows come back into order. Pure."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


def alike(
    items: Iterable[T],
    like: Callable[[T], Hashable],
    nbytes: Callable[[T], int],
    *,
    size: int,
    window: int,
    window_bytes: int,
) -> Iterator[list[T]]:
    """Batches of like items, each in the order of the input.

    An item waits for others that are like it until it is `window` items old, or until items of several kinds wait that
    take more than `window_bytes`; then it goes with what there is. The batches depend on the items alone, never on the
    time.

    Args:
        items: in order.
        like: equal for items that may share a batch.
        nbytes: what an item takes in memory while it waits.
        size: of a full batch, which goes at once.
        window: at least 1.
        window_bytes: those of a single kind always wait for a full batch.

    >>> words = ["a", "bb", "c", "dd", "e", "ff", "g"]
    >>> list(alike(words, len, len, size=3, window=5, window_bytes=100))
    [['a', 'c', 'e'], ['bb', 'dd', 'ff'], ['g']]
    >>> list(alike(words, len, len, size=3, window=2, window_bytes=100))
    [['a', 'c'], ['bb', 'dd'], ['e', 'g'], ['ff']]
    """
    groups: dict[Hashable, list[T]] = {}  # the group whose first item is the oldest comes first
    since: dict[Hashable, int] = {}
    held = 0

    def taken(key: Hashable) -> list[T]:
        nonlocal held
        del since[key]
        batch = groups.pop(key)
        held -= sum(map(nbytes, batch))
        return batch

    for number, item in enumerate(items):
        key = like(item)
        group = groups.setdefault(key, [])
        since.setdefault(key, number)
        group.append(item)
        held += nbytes(item)
        full = len(group) == size
        del item, group  # or they stay in memory while the next ones are gathered
        if full:
            yield taken(key)
        while groups and (
            number - since[oldest := next(iter(groups))] >= window or (held > window_bytes and len(groups) > 1)
        ):
            yield taken(oldest)
    while groups:
        yield taken(next(iter(groups)))


class InOrder(Generic[T]):
    """Gives numbered things out in the order of their numbers, which count from 0 without a gap."""

    def __init__(self) -> None:
        self._next = 0
        self._early: dict[int, T] = {}

    def add(self, things: Iterable[tuple[int, T]]) -> list[T]:
        """Take things in -> those whose turn it is now.

        >>> order = InOrder()
        >>> order.add([(1, "b"), (2, "c")]), order.add([(0, "a"), (4, "e")]), order.add([(3, "d")])
        ([], ['a', 'b', 'c'], ['d', 'e'])
        """
        self._early.update(things)
        due = []
        while self._next in self._early:
            due.append(self._early.pop(self._next))
            self._next += 1
        return due
