"""Groups of single images, named by a listing in the run; and the fetching of images that are only named."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from pipeline.errors import AccessError, NotFoundError, ShardError, StoreError, UnreachableError, UserError
from pipeline.records import ImageRecord, Shard
from pipeline.sources.common import ReadOptions, accounted, image_record
from pipeline.store import Store, join, redact

_THREADS, _AHEAD, _AHEAD_BYTES = 8, 16, 64 << 20


class Listed(NamedTuple):
    """An image that is still to be fetched. `bytes` and `etag` are there where the listing of the storage told them."""

    key: str
    uri: str
    bytes: int | None = None
    etag: str | None = None
    image_id: int | None = None


def to_line(image: Listed) -> bytes:
    """A line of a listing: a JSON object of what is known."""
    return json.dumps({key: value for key, value in image._asdict().items() if value is not None}).encode() + b"\n"


@accounted
def listing(shard: Shard, /, *, store: Store, options: ReadOptions) -> Iterator[ImageRecord]:
    """The images that a listing in the run names, in its order."""
    uri = join(options.run_uri, shard.uri)
    content = store.get(uri)
    if hashlib.sha256(content).hexdigest() != shard.etag:
        raise ShardError(f"{redact(uri)} is not the listing that was planned: its checksum differs.")
    yield from fetched(from_lines(content), store=store, options=options)


def from_lines(content: bytes) -> Iterator[Listed]:
    """The images of a listing."""
    return (Listed(**json.loads(line)) for line in content.splitlines())


def fetched(images: Iterable[Listed | ImageRecord], *, store: Store, options: ReadOptions) -> Iterator[ImageRecord]:
    """The records of images, those that are only named fetched a few ahead; in the order given.

    Raises:
        AccessError, UnreachableError: storage refused or did not answer, as it would for the other images.
    """
    waiting: deque[Future[ImageRecord]] = deque()
    pool = ThreadPoolExecutor(_THREADS)
    try:
        for image in images:
            if isinstance(image, Listed):
                waiting.append(pool.submit(_fetch, image, store, options))
            else:
                while waiting:
                    yield waiting.popleft().result()
                yield image
            while waiting and (len(waiting) >= _AHEAD or _held(waiting) > _AHEAD_BYTES):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _held(waiting: Iterable[Future[ImageRecord]]) -> int:
    """The bytes of the images that have arrived."""
    return sum(len(one.result().data) for one in waiting if one.done() and one.exception() is None)


def _fetch(image: Listed, store: Store, options: ReadOptions) -> ImageRecord:
    """One image, or why it is not to be had."""
    limit = options.max_image_bytes
    if image.bytes is not None and image.bytes > limit:
        return image_record(image.key, image.uri, b"", options, size=image.bytes, image_id=image.image_id)
    try:
        with store.open(image.uri, etag=image.etag) as stream:
            data = stream.read(limit + 1)
    except (AccessError, UnreachableError):
        raise
    except (StoreError, UserError) as error:
        reason = "missing" if isinstance(error, NotFoundError) else "unreadable"
        detail = str(error).rstrip(".")
        return ImageRecord(key=image.key, uri=image.uri, image_id=image.image_id, error=f"{reason}: {detail}")
    return image_record(image.key, image.uri, data, options, image_id=image.image_id)
