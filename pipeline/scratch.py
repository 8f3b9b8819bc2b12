"""Local folders for the files of an attempt, which do not outlive their process for long.

A process that is killed leaves its folder behind, and a long run on nodes that come and go would fill their disks. Each
folder holds a lock for as long as its process lives; the next process removes those whose lock is free.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "patchlabel-attempt-"
_LOCK = "lock"


@contextmanager
def folder() -> Iterator[Path]:
    """An empty folder in the place for temporary files (TMPDIR), removed afterwards."""
    path = Path(tempfile.mkdtemp(prefix=_PREFIX))
    with (path / _LOCK).open("x") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def sweep() -> int:
    """Remove the folders of processes that are no more -> how many there were."""
    swept = 0
    for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_LOCK}"):
        try:
            with lock.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent)
            swept += 1
        except OSError:  # in use, somebody else's, or swept by another process just now
            continue
    return swept
