"""How long storage is waited for, and how often that was needed."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how long storage is tried. An endpoint that is down is reported within about ten seconds.

    Attributes:
        attempts: how often an operation is tried before it is given up.
        connect_s: how long one try waits for a connection, and for the store to take the next bytes, in seconds.
        read_s: how long one try waits for the next bytes of an answer, in seconds.
    """

    attempts: int = 4
    connect_s: float = 2.0
    read_s: float = 30.0

    def tries(self) -> Iterator[int]:
        """Counts the tries from 1, and waits before each but the first: about 0.2 s, 0.8 s, 3 s, then 8 s."""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(random.uniform(0.5, 1.0) * min(0.25 * 4 ** (attempt - 1), 10.0))
            yield attempt + 1


class Retries:
    """How often something was tried again, by reason. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, reason: str) -> None:
        """Count one."""
        with self._lock:
            self._counts[reason] += 1

    def counts(self) -> dict[str, int]:
        """The counts so far, the most frequent reason first."""
        with self._lock:
            return dict(self._counts.most_common())
