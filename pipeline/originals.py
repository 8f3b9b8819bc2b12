"""The images of a run as they were stored, read again from where the run had them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pydantic import TypeAdapter, ValidationError

from pipeline.config import InputConfig, LimitsConfig
from pipeline.errors import ShardError, UserError
from pipeline.records import Commit, ImageLabels, ImageRecord, Manifest, Shard
from pipeline.runs import Labels
from pipeline.sources import SOURCES, ReadOptions
from pipeline.store import redact

_input: TypeAdapter[InputConfig] = TypeAdapter(InputConfig)
_limits: TypeAdapter[LimitsConfig] = TypeAdapter(LimitsConfig)


def read(labels: Labels, shard: Shard, keys: Collection[str] | None = None) -> Iterator[ImageRecord]:
    """The images of a shard, in the order of its rows; a stream through the whole shard.

    Args:
        labels: the run.
        shard: one of it.
        keys: of the images that are wanted; None: all. Those that cannot be had any more come as records with `error`.

    Raises:
        ShardError: the shard is gone, replaced or damaged.
        UserError: the manifest does not say how it was read.
    """
    options = read_options(labels.manifest, labels.uri)
    left = None if keys is None else set(keys)
    if left is not None and not left:
        return
    for record in SOURCES[shard.format](shard, store=labels.store, options=options):
        if left is None:
            yield record
        elif record.key in left:
            left.remove(record.key)
            yield record
            if not left:
                return


def rows_with_images(labels: Labels, shard: Shard, commit: Commit) -> Iterator[tuple[ImageLabels, ImageRecord]]:
    """The rows of a committed shard, each with its image, which come in the same order.

    Raises:
        ShardError, StoreError, UserError: as `read` and `Labels.rows`.
    """
    records = read(labels, shard)
    for row in labels.rows(commit):
        record = next((record for record in records if record.key == row.key), None)
        if record is None:
            raise ShardError(f"{redact(shard.uri)} does not name the image {row.key} any more.")
        yield row, record


def read_options(manifest: Manifest, run_uri: str) -> ReadOptions:
    """How a run read its images.

    Raises:
        UserError: its manifest does not say so in a way that this version knows.
    """
    try:
        given = _input.validate_python(manifest.config["input"])
        limits = _limits.validate_python(manifest.config["limits"])
    except (KeyError, ValidationError) as error:
        raise UserError(
            f"{redact(run_uri)}: its manifest holds no config that this version of the package reads"
        ) from error
    return options_of(given, limits, run_uri)


def options_of(given: InputConfig, limits: LimitsConfig, run_uri: str) -> ReadOptions:
    """How the images of an input are read, whose listings are those of a run."""
    return ReadOptions(
        max_image_bytes=limits.max_image_bytes,
        run_uri=run_uri,
        image_column=given.image_column,
        key_column=given.key_column,
    )
