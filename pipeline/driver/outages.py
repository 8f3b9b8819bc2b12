"""How long storage has not answered, by what workers report: pure, with time as an argument."""

from __future__ import annotations

#: Longer than all tries of one operation take. Who hears of no trouble for so long takes the storage to be back.
QUIET_S = 180.0


class Outage:
    """From the first report of trouble to a commit, or to a time without a report."""

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
