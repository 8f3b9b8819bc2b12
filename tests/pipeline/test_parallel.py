"""Threads that help: in order, and with what goes wrong in them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.parallel import Behind, Line, Prefetch, ahead


def test_ahead_is_in_order():
    """Listings of a run that come in the order in which threads end."""
    first = threading.Event()

    def work(number):
        if number == 0:
            assert first.wait(60)
        if number == 3:
            first.set()
        return number

    assert list(ahead(work, range(50), threads=4)) == list(range(50))


def test_what_goes_wrong_behind_comes_to_the_front():
    """A file that was not written, behind a commit that says it was."""
    calls = []

    def fail():
        raise ValueError("the disk is full")

    def run(*given):
        with Behind("writing") as behind:
            for call in given:
                behind(call)

    with pytest.raises(ValueError, match="the disk is full"):
        run(lambda: calls.append(1), fail)
    with pytest.raises(ValueError, match="the disk is full"):
        run(fail, lambda: calls.append(2))
    assert calls == [1]


def test_behind_is_one_call_behind():
    """Batches that gather, because writing is slower than the model."""
    begun, go_on = threading.Event(), threading.Event()
    done = []

    def slow():
        begun.set()
        assert go_on.wait(60)
        done.append(1)

    with Behind("writing") as behind:
        behind(slow)
        assert begun.wait(60)
        assert done == []
        with ThreadPoolExecutor(1) as other:
            second = other.submit(behind, lambda: done.append(2))
            assert not second.done()
            go_on.set()
    assert done == [1, 2]


def test_a_line_lets_one_through_at_a_time():
    """Two shards that feed one model at once; and one that waits for another which gave up while it stood in line."""
    line, inside, order = Line(), threading.Lock(), []
    places = [line.join() for _ in range(6)]

    def go(number):
        places[number].wait()
        assert inside.acquire(blocking=False)
        order.append(number)
        inside.release()
        places[number].leave()
        places[number].leave()

    places[2].leave()
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(go, (5, 4, 3, 1, 0)))
    assert order == [0, 1, 3, 4, 5]


def test_prefetch_hands_on_what_work_raises():
    """An image that a labeler cannot prepare, and a worker that waits for it for ever."""

    def work(number):
        return 1 // (3 - number)

    prefetch = Prefetch(2, "work")
    stream = prefetch.stream(range(10), work, cost=lambda _: 1, ahead=4, ahead_bytes=100)
    with pytest.raises(ZeroDivisionError):
        list(stream)
    assert list(prefetch.stream(range(3), work, cost=lambda _: 1, ahead=4, ahead_bytes=4)) == [0, 0, 1]
    prefetch.close()
