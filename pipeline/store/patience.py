"""How long storage is waited for."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Patience:
    """How often and how long storage is tried. An endpoint that is down is reported within about ten seconds.

    Attributes:
        attempts: how often an operation is tried before it is given up.
        connect_s: how long one try waits for a connection, in seconds.
        read_s: how long one try waits for the next bytes, in seconds.
    """

    attempts: int = 4
    connect_s: float = 2.0
    read_s: float = 30.0

    def tries(self) -> Iterator[int]:
        """Counts the tries from 1, and waits before each but the first: about 0.25 s, 0.5 s, 1 s and so on."""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(random.uniform(0.5, 1.0) * min(0.25 * 2 ** (attempt - 1), 8.0))
            yield attempt + 1
