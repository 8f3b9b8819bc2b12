"""Work in threads that stays in order and never runs far ahead of whoever takes the results."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

T = TypeVar("T")
U = TypeVar("U")

_AHEAD = 4  # tasks a thread that are taken from the input before their results are asked for


def ahead(function: Callable[[T], U], items: Iterable[T], *, threads: int) -> Iterator[U]:
    """The results of a function in the order of the items, worked out in threads, a bounded number at a time."""
    waiting: deque[Future[U]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= _AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class Prefetch:
    """Reads streams of items, and works on these, ahead of whoever takes the results; a bounded number of bytes ahead.

    A stream is read in a thread of its own. All streams share the threads that work, and the bytes.
    """

    def __init__(self, threads: int, name: str) -> None:
        """`threads` work at once; they are called by `name`."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._room = threading.Condition()
        self._held_bytes = 0

    def close(self) -> None:
        """Give the threads back, when they have done what they are at."""
        self._pool.shutdown(cancel_futures=True)

    def stream(
        self,
        items: Iterable[T],
        work: Callable[[T], U],
        *,
        cost: Callable[[T], int],
        ahead: int,
        ahead_bytes: int,
        at_end: Callable[[], None] = lambda: None,
    ) -> Iterator[U]:
        """The results of `work` in the order of the items; what the items, or `work`, raise comes through.

        Leaving early closes the items, and waits for nothing but the item that is being read.

        Args:
            items: read in a thread.
            work: called in others.
            cost: what an item and its result take, in bytes.
            ahead: how many items are held at most, before and after they are worked on.
            ahead_bytes: what those of all streams may cost together; a single one of a stream may always be held.
            at_end: is called when the last item has been read.
        """
        stream = _Stream[T, U](self._room)
        reader = threading.Thread(
            target=lambda: self._read(stream, items, work, cost, ahead, ahead_bytes, at_end),
            name="reading",
            daemon=True,
        )
        reader.start()
        try:
            while (first := stream.first()) is not None:
                future, its_cost = first
                result = future.result()
                with self._room:
                    stream.waiting.popleft()
                    self._held_bytes -= its_cost
                    self._room.notify_all()
                del first, future  # or what they hold stays in memory until the next one is taken
                yield result
                del result
        finally:
            with self._room:
                stream.left = True
                self._room.notify_all()
            reader.join()
            for future, its_cost in stream.waiting:
                future.cancel()
                with self._room:
                    self._held_bytes -= its_cost

    def _read(
        self,
        stream: _Stream[T, U],
        items: Iterable[T],
        work: Callable[[T], U],
        cost: Callable[[T], int],
        ahead: int,
        ahead_bytes: int,
        at_end: Callable[[], None],
    ) -> None:
        """What a reading thread does."""
        iterator = iter(items)
        try:
            for item in iterator:
                its_cost = cost(item)
                with self._room:
                    while (
                        not stream.left
                        and stream.waiting
                        and (len(stream.waiting) >= ahead or self._held_bytes + its_cost > ahead_bytes)
                    ):
                        self._room.wait()
                    if stream.left:
                        return
                    stream.waiting.append((self._pool.submit(work, item), its_cost))
                    self._held_bytes += its_cost
                    self._room.notify_all()
                del item
            at_end()
        except BaseException as error:  # noqa: BLE001 it goes on in the thread that takes the results
            stream.failure = error
        finally:
            if isinstance(iterator, Generator):
                iterator.close()
            with self._room:
                stream.ended = True
                self._room.notify_all()


class _Stream(Generic[T, U]):
    """What the two ends of a stream tell each other.

    waiting: the items that were read, with their costs; ended: there are no more, after `failure` or without; left:
    nobody takes results any more.
    """

    def __init__(self, room: threading.Condition) -> None:
        self._room = room
        self.waiting: deque[tuple[Future[U], int]] = deque()
        self.ended = self.left = False
        self.failure: BaseException | None = None

    def first(self) -> tuple[Future[U], int] | None:
        """The oldest item, once there is one; None after the last."""
        with self._room:
            while not self.waiting and not self.ended:
                self._room.wait()
            if self.failure is not None:
                raise self.failure
            return self.waiting[0] if self.waiting else None


class Behind:
    """Runs calls one after another in a thread of its own, while whoever gives them goes on. A context manager.

    Leaving it waits for the calls; what one of them raises comes out of the next call, or of leaving.
    """

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._last: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._pool.shutdown(cancel_futures=kind is not None)
        if kind is None and self._last is not None:
            self._last.result()

    def __call__(self, call: Callable[[], None]) -> None:
        """Run a call, as soon as the one before it is done; it is waited for that."""
        if self._last is not None:
            self._last.result()
        self._last = self._pool.submit(call)


class Line:
    """Lets those who stand in it through one after another, in the order in which they joined."""

    def __init__(self) -> None:
        self._moved = threading.Condition()
        self._places: list[Place] = []

    def join(self) -> Place:
        """Stand behind those who are here."""
        place = Place(self)
        with self._moved:
            self._places.append(place)
            self._places[0].first_since = self._places[0].first_since or time.monotonic()
        return place

    def wait(self, place: Place) -> None:
        """Wait until everyone before this place has left."""
        with self._moved:
            while self._places[0] is not place:
                self._moved.wait()

    def leave(self, place: Place) -> None:
        """Let the next one through; this can be done again."""
        with self._moved:
            if place in self._places:
                self._places.remove(place)
                if self._places:
                    self._places[0].first_since = self._places[0].first_since or time.monotonic()
                self._moved.notify_all()


class Place:
    """A place in a line.

    Attributes:
        first_since: when everyone before had left, by `time.monotonic`; None before.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        self.first_since: float | None = None

    def wait(self) -> None:
        """Wait until everyone before has left."""
        self._line.wait(self)

    def leave(self) -> None:
        """Let the next one through; this can be done again."""
        self._line.leave(self)
