"""Shards to image records: one generator function for each shard format, and SOURCES, the table of them.

A source streams: it holds a few images at a time, never its shard. It gives one record for each image of the shard, in
a fixed order, and loses none in silence: an image that cannot be had is a record with `error`. A shard that cannot be
read to its end is a `ShardError`, because a shard counts whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.records import ShardFormat
from pipeline.sources.common import ReadOptions, Source
from pipeline.sources.listings import listing
from pipeline.sources.parquets import parquet
from pipeline.sources.tars import tar

__all__ = ["SOURCES", "ReadOptions", "Source", "listing", "parquet", "tar"]

SOURCES: Mapping[ShardFormat, Source] = {"tar": tar, "parquet": parquet, "listing": listing}
