"""The time of day, which is shown to people and never compared: clocks differ, and jump."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> str:
    """Now, to the second, as ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")  # noqa: TID251 what it is for
