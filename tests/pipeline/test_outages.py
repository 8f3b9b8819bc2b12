"""When storage has been away for too long, without a clock."""

from __future__ import annotations

from pipeline.driver.outages import QUIET_S, Outage


def test_an_outage_lasts_from_its_first_report() -> None:
    """Workers that rest and try again must not begin to count anew each time."""
    outage = Outage()
    assert [outage.reported(now) for now in (100.0, 110.0, 400.0 - QUIET_S, 400.0)] == [0, 10, 300 - QUIET_S, 300]


def test_two_troubles_far_apart_are_no_outage() -> None:
    """Where a shard takes an hour, nothing is committed between two short troubles; the run must not stop for them."""
    outage = Outage()
    outage.reported(100.0)
    assert outage.reported(101.0 + QUIET_S) == 0


def test_a_commit_ends_an_outage() -> None:
    """One node with a broken network must not stop a run whose other workers go on."""
    outage = Outage()
    outage.reported(100.0)
    outage.over()
    assert outage.reported(105.0) == 0
