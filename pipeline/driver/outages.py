"""What concerns the whole run, by what workers report: pure, with time as an argument."""

from __future__ import annotations

from collections import Counter

from pipeline.errors import RunError

#: Longer than all tries of one operation take. Who hears of no trouble for so long takes the storage to be back.
QUIET_S = 180.0
#: So many failures that every shard might meet, one after another, stop the run.
FAILURES_IN_A_ROW = 3


class Series:
    """Failures of one kind, one after another."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def goes_on(self, what: str, reason: str) -> None:
        """One more.

        Raises:
            RunError: it is one too many.
        """
        self._counts[what] += 1
        if self._counts[what] >= FAILURES_IN_A_ROW:
            raise RunError(f"{FAILURES_IN_A_ROW} {what}, one after another: {reason}")

    def ends(self) -> None:
        """Something went well."""
        self._counts.clear()


class Outage:
    """Of storage: from the first report of trouble to a commit, or to a time without a report."""

    def __init__(self) -> None:
        self._since = self._last = -float("inf")

    def reported(self, now: float) -> float:
        """Storage did not answer a worker -> for how long this has been so, in seconds."""
        if now - self._last > QUIET_S:
            self._since = now
        self._last = now
        return now - self._since

    def over(self) -> None:
        """Something was committed."""
        self._last = -float("inf")
