"""A run as somebody at a terminal or in front of a log sees it."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from pipeline.curves import duration
from pipeline.driver import Outcome, Snapshot
from pipeline.records import Failure
from pipeline.store import redact

log = logging.getLogger("pipeline.run")

LOG_EVERY_S = 60.0


def line(now: Snapshot) -> str:
    """Where a run stands, in a line; the rate counts what this driver has seen, the time left follows from it."""
    parts = [f"{now.done}/{now.shards} shards"]
    if now.failed:
        parts.append(f"{now.failed} set aside")
    parts.append(f"{now.images} images")
    if now.quarantined:
        parts.append(f"{now.quarantined} quarantined")
    parts += [
        f"{now.instances} masks",
        f"{now.images / now.seconds:.1f} images/s" if now.seconds else "",
        _workers(now),
        _left(now),
    ]
    return ", ".join(part for part in parts if part)


def _left(now: Snapshot) -> str:
    """The time that the shards to do will take, as fast as those that this driver has seen done."""
    if not now.done_here or now.done + now.failed >= now.shards:
        return ""
    return f"{duration((now.shards - now.done - now.failed) * now.seconds / now.done_here)} left"


def _workers(now: Snapshot) -> str:
    return f"{now.workers} worker{'' if now.workers == 1 else 's'}"


@contextmanager
def reporter() -> Iterator[Callable[[Snapshot], None]]:
    """A function to report to: a bar on a terminal, a line a minute in a log, in JSON with its figures as fields."""
    if sys.stderr.isatty():
        bar = Progress(BarColumn(30), TextColumn("{task.description}"), console=Console(stderr=True), transient=True)
        with bar, _logging_above_the_bar():
            task = bar.add_task("starting")
            yield lambda now: bar.update(task, total=now.shards, completed=now.done, description=line(now))
        return
    last = time.monotonic()

    def to_log(now: Snapshot) -> None:
        nonlocal last
        if time.monotonic() - last >= LOG_EVERY_S:
            last = time.monotonic()
            log.info(line(now), extra={"progress": asdict(now)})

    yield to_log


@contextmanager
def _logging_above_the_bar() -> Iterator[None]:
    """Send log lines through the stderr that rich puts in place of the real one while a bar is shown."""
    streams = [h for h in logging.getLogger().handlers if isinstance(h, logging.StreamHandler)]
    before = [(handler, handler.setStream(sys.stderr)) for handler in streams]
    try:
        yield
    finally:
        for handler, stream in before:
            if stream is not None:
                handler.setStream(stream)


def _failure(failure: Failure) -> str:
    uri, error = redact(failure.uri), failure.error.removesuffix(".")
    what = error if uri in error else f"{uri}: {error}"
    return f"set aside after {failure.attempts} attempt{'s' * (failure.attempts > 1)}: {what}"


def summary(outcome: Outcome) -> str:
    """The end of a run for a person: what was done, what was not and why, and what to do next."""
    now = outcome.snapshot
    lines = [
        f"{now.done} of {now.shards} shards are committed at {redact(outcome.uri)}",
        f"this time: {now.images} images = {now.labelled} labelled + {now.empty} empty + {now.quarantined} quarantined"
        f", {now.instances} masks, in {now.seconds:.0f} s",
    ]
    lines += map(_failure, outcome.failures)
    if outcome.interrupted:
        lines.append(f"stopped by {outcome.interrupted}; run the same command again to go on")
    elif not outcome.complete:
        lines.append(
            "run the same command again to try what was set aside; a file that was replaced needs another output.uri"
        )
    return "\n".join(lines)
