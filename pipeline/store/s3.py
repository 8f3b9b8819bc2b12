"""S3 and the stores that speak its language, by boto3.

boto3 itself tries everything once. What is tried again is decided here, in one place: what the store did not answer or
was too busy for, and what it refused because the credentials had expired, with those of the environment read anew. A
transfer that broke off goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import boto3
from botocore import exceptions as boto
from botocore.config import Config

from pipeline.errors import (
    AccessError,
    ChangedError,
    LabelingError,
    NotFoundError,
    StoreError,
    UnreachableError,
    UserError,
)
from pipeline.store import s3_errors, s3_reader
from pipeline.store.patience import Patience, Retries
from pipeline.store.uris import HIDDEN, ObjectInfo, Selection, Unfinished, redact, split_bucket

T = TypeVar("T")

_PART, _MOST_PARTS, _PARTS_AT_ONCE = 8 << 20, 10_000, 4


class S3Backend:
    """Objects in buckets. Credentials, region and endpoint come from the environment, as boto3 reads it."""

    def __init__(self, patience: Patience, retries: Retries) -> None:
        self._patience, self._retries = patience, retries
        self._lock = threading.Lock()
        self._client: Any = None

    def stat(self, uri: str) -> ObjectInfo:
        """See `Backend`."""
        bucket, key = _split(uri)

        def ask(client: Any) -> Any:
            """Ask for the first byte rather than for the head alone, which could be cut short without a sign of it."""
            try:
                answer = client.get_object(Bucket=bucket, Key=key, Range="bytes=0-0")
                answer["Body"].read()
            except boto.ClientError as error:
                if s3_errors.status_of(error) != 416:  # there is no first byte
                    raise
                answer = client.head_object(Bucket=bucket, Key=key)
            return s3_errors.whole(answer, "ContentLength", "ETag", "LastModified")

        answer = self._ask(uri, ask)
        total = answer.get("ContentRange", "").rpartition("/")[2]
        size = int(total) if total.isdigit() else answer["ContentLength"]
        return ObjectInfo(uri=uri, bytes=size, etag=_etag(answer), modified=answer["LastModified"].timestamp())

    def open(self, uri: str, etag: str | None) -> BinaryIO:
        """See `Backend`."""
        bucket, key = _split(uri)

        def request(offset: int, etag: str | None) -> Any:
            condition = {} if etag is None else {"IfMatch": f'"{etag}"'}
            part = {} if offset == 0 else {"Range": f"bytes={offset}-"}
            return self._ask(uri, lambda client: client.get_object(Bucket=bucket, Key=key, **condition, **part))

        return s3_reader.buffered(uri, request, etag, self._patience, self._retries)

    def put(self, uri: str, data: bytes | Path) -> None:
        """See `Backend`. A large file goes in several parts at once."""
        bucket, key = _split(uri)
        if isinstance(data, Path) and data.stat().st_size > _PART:
            try:
                self._put_parts(uri, data)
            except (AccessError, UnreachableError):
                raise
            except StoreError:  # an answer about a part was damaged, or somebody aborted the upload
                self._retries.add("upload")
                self._put_parts(uri, data)
            return
        body = data if isinstance(data, bytes) else data.read_bytes()
        self._ask(uri, lambda client: client.put_object(Bucket=bucket, Key=key, Body=body))

    def create(self, uri: str, data: bytes) -> bool:
        """See `Backend`. Never a conditional multipart upload: several racers can win that."""
        bucket, key = _split(uri)
        try:
            self._ask(
                uri, lambda client: client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*"), lost=False
            )
        except ChangedError:
            return False
        return True

    def walk(self, selection: Selection) -> Iterator[ObjectInfo]:
        """See `Backend`. In pages of up to 1,000 as the store lists them."""
        bucket, prefix = split_bucket(selection.directory)
        query = {"Bucket": bucket, "Prefix": prefix + selection.start}
        if selection.depth == 1:
            query["Delimiter"] = "/"
        while True:
            page = self._ask(
                selection.directory, lambda client: s3_errors.whole(client.list_objects_v2(**query), "Name")
            )
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):  # what some tools leave to stand for a directory
                    uri = selection.directory + entry["Key"][len(prefix) :]
                    modified = entry["LastModified"].timestamp()
                    yield ObjectInfo(uri=uri, bytes=entry["Size"], etag=_etag(entry), modified=modified)
            if not page.get("IsTruncated"):
                return
            query["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, uri: str) -> None:
        """See `Backend`."""
        bucket, key = _split(uri)
        self._ask(uri, lambda client: client.delete_object(Bucket=bucket, Key=key))

    def unfinished(self, directory: str) -> Iterator[Unfinished]:
        """See `Backend`. An object appears whole or not at all, so those hidden are probes, beside no others."""
        for info in self.walk(Selection(directory=directory, start=HIDDEN, depth=1)):
            yield Unfinished(uri=info.uri, bytes=info.bytes, modified=info.modified)
        bucket, prefix = split_bucket(directory)
        query = {"Bucket": bucket, "Prefix": prefix}
        while True:
            page = self._ask(
                directory, lambda client: s3_errors.whole(client.list_multipart_uploads(**query), "Bucket")
            )
            for entry in page.get("Uploads", ()):
                uri = directory + entry["Key"][len(prefix) :]
                yield Unfinished(uri=uri, modified=entry["Initiated"].timestamp(), upload=entry["UploadId"])
            if not page.get("IsTruncated"):
                return
            query.update(KeyMarker=page["NextKeyMarker"], UploadIdMarker=page["NextUploadIdMarker"])

    def abort(self, uri: str, upload: str) -> None:
        """See `Backend`."""
        bucket, key = _split(uri)
        with suppress(NotFoundError):
            self._ask(uri, lambda client: client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload))

    def _put_parts(self, uri: str, file: Path) -> None:
        """Upload a file in parts, each of which is tried again on its own; all or nothing comes of it."""
        bucket, key = _split(uri)
        size = file.stat().st_size
        step = max(_PART, -(-size // _MOST_PARTS))

        def begin(client: Any) -> Any:
            answer = client.create_multipart_upload(Bucket=bucket, Key=key, **_checksums(client))
            return s3_errors.whole(answer, "UploadId")

        upload = self._ask(uri, begin)["UploadId"]
        place = {"Bucket": bucket, "Key": key, "UploadId": upload}

        def send(number: int) -> dict[str, Any]:
            with file.open("rb") as source:
                source.seek((number - 1) * step)
                body = source.read(step)

            def upload_part(client: Any) -> Any:
                answer = client.upload_part(**place, PartNumber=number, Body=body, **_checksums(client))
                return s3_errors.whole(answer, "ETag")

            answer = self._ask(uri, upload_part)
            return {name: answer[name] for name in ("ETag", "ChecksumCRC32") if name in answer} | {"PartNumber": number}

        def complete(client: Any) -> Any:
            answer = client.complete_multipart_upload(**place, MultipartUpload={"Parts": parts})
            return s3_errors.whole(answer, "ETag")

        try:
            with ThreadPoolExecutor(_PARTS_AT_ONCE) as threads:
                parts = list(threads.map(send, range(1, -(-size // step) + 1)))
            try:
                self._ask(uri, complete)
            except NotFoundError:  # as after a try whose answer was lost, and which had completed it
                if self.stat(uri).etag != _etag_of(parts):
                    raise
        except BaseException:
            with suppress(LabelingError):  # it stays, for `patchlabel gc`
                self.abort(uri, upload)
            raise

    def _ask(self, uri: str, operation: Callable[[Any], T], *, lost: bool = True) -> T:
        """The answer to one operation, which is tried again as patience allows.

        Args:
            uri: what it is about.
            operation: what to ask of a client.
            lost: whether to try again where no answer came, or that the store is busy.
        """
        failure: LabelingError = UnreachableError(f"{redact(uri)} was not tried.")
        again, stale = "", None
        for attempt in self._patience.tries():
            if attempt > 1:
                self._retries.add(again)
            client = self._connected(uri, stale)
            try:
                return operation(client)
            except s3_errors.FAILURES as error:
                failure = s3_errors.translate(uri, error, self._patience)
                again, stale = s3_errors.reason(error), client if s3_errors.expired(error) else None
                if stale is None and not (lost and isinstance(failure, UnreachableError)):
                    raise failure from None
        raise failure

    def _connected(self, uri: str, stale: Any) -> Any:
        """The client, made when it is first needed, and again where it is the stale one. All threads share it."""
        with self._lock:
            if self._client is None or self._client is stale:
                config = Config(
                    connect_timeout=self._patience.connect_s,
                    read_timeout=self._patience.read_s,
                    retries={"mode": "standard", "total_max_attempts": 1},
                    max_pool_connections=64,
                    tcp_keepalive=True,
                )
                try:
                    self._client = boto3.session.Session().client("s3", config=config)
                except ValueError as error:
                    raise UserError(
                        f"The settings for S3 in the environment are not valid: {redact(str(error))}."
                    ) from None
                except s3_errors.FAILURES as error:
                    raise s3_errors.translate(uri, error, self._patience) from None
            return self._client


def _split(uri: str) -> tuple[str, str]:
    bucket, key = split_bucket(uri)
    if not key:
        raise NotFoundError(f"{redact(uri)} names a bucket, not an object in it.")
    return bucket, key


def _etag(answer: Any) -> str:
    return str(answer.get("ETag", "")).strip('"')


def _etag_of(parts: list[dict[str, Any]]) -> str:
    """The etag that S3 gives to an object of several parts."""
    joined = b"".join(bytes.fromhex(_etag(part)) for part in parts)
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts)}"


def _checksums(client: Any) -> dict[str, str]:
    """What asks the store to check each part, unless the environment says that it cannot."""
    wanted = client.meta.config.request_checksum_calculation == "when_supported"
    return {"ChecksumAlgorithm": "CRC32"} if wanted else {}
