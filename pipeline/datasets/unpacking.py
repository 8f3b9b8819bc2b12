"""Images of tar and Parquet shards as files of their own, for who reads them in any order, again and again."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError
from pipeline.records import Shard
from pipeline.sources import SOURCES, ReadOptions
from pipeline.store import Store


def default_cache() -> Path:
    """A folder of this user's in the system's temporary folder."""
    return Path(tempfile.gettempdir()) / f"patchlabel-{os.getuid()}"


def unpack(shard: Shard, keys: Collection[str], folder: Path, *, store: Store, options: ReadOptions) -> dict[str, Path]:
    """Write images of a shard into a folder, unless they are there. Of several processes, one does the work.

    The folder appears with all images in it or not at all.

    Args:
        shard: a shard as of a manifest; its content does not change.
        keys: which images.
        folder: local, and for this shard alone.
        store: where to read.
        options: how the shard was read.

    Returns:
        By key, the path of each image that the shard holds.

    Raises:
        ShardError: the shard is gone, damaged or replaced.
        UserError: the folder cannot be written.
    """
    files = {key: hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:32] for key in keys}
    try:
        _make(folder.parent)
        with _locked(folder.with_name(f"{folder.name}.lock")):
            if not set(files.values()) <= _names(folder):
                _fill(folder, shard, files, store=store, options=options)
            there = _names(folder)
    except OSError as error:
        raise UserError(f"data.cache: {folder} cannot be written: {(error.strerror or str(error)).lower()}") from error
    return {key: folder / file for key, file in files.items() if file in there}


def _fill(folder: Path, shard: Shard, files: dict[str, str], *, store: Store, options: ReadOptions) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-") as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        for record in SOURCES[shard.format](shard, store=store, options=options):
            if record.error is None and record.key in files:
                (new / files[record.key]).write_bytes(record.data)
        if folder.exists():  # without some of the images: systems tidy up their temporary folders file by file
            shutil.move(folder, Path(temporary) / "old")
        new.rename(folder)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _make(folder: Path) -> None:
    """Make a folder. The default cache is this user's alone: what another one put there would be taken for images."""
    own = default_cache()
    if folder.is_relative_to(own):
        own.mkdir(mode=0o700, exist_ok=True)
        if own.stat().st_uid != os.getuid():
            raise UserError(f"data.cache: {own} belongs to another user; set data.cache to a folder of your own")
    folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait until no other process or thread is here."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
