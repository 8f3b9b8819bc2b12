"""S3 and the stores that speak its language, by boto3.

boto3 repeats a request that was refused or lost. What it does not do is done here: a transfer that broke off goes on
where it stopped, and expired credentials are read anew.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

import boto3
import urllib3.exceptions
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
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
from pipeline.store.patience import Patience
from pipeline.store.uris import ObjectInfo, Selection, redact, split_bucket

if TYPE_CHECKING:
    from typing_extensions import Buffer

T = TypeVar("T")

_CHUNK = 1 << 20  # what is read at a time, and the most that a broken transfer takes along with it

_FAILURES = (boto.ClientError, boto.BotoCoreError, S3UploadFailedError)
_BROKEN = (boto.BotoCoreError, urllib3.exceptions.HTTPError, OSError)
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.MetadataRetrievalError,
    boto.ProfileNotFound,
    boto.NoAuthTokenError,
    boto.TokenRetrievalError,
    boto.SSOError,
    boto.LoginError,
)
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired")


class S3Backend:
    """Objects in buckets. Credentials, region and endpoint come from the environment, as boto3 reads it."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._lock = threading.Lock()
        self._client: Any = None

    def stat(self, uri: str) -> ObjectInfo:
        """See `Backend`."""
        bucket, key = _split(uri)

        def head(client: Any) -> Any:
            try:
                return client.head_object(Bucket=bucket, Key=key)
            except boto.ClientError:  # an answer to HEAD has no room for the reason, one to GET has
                answer = client.get_object(Bucket=bucket, Key=key)
                answer["Body"].close()
                return answer

        answer = self._ask(uri, head)
        return ObjectInfo(uri=uri, bytes=answer["ContentLength"], etag=_etag(answer))

    def open(self, uri: str, etag: str | None) -> BinaryIO:
        """See `Backend`."""
        bucket, key = _split(uri)

        def request(offset: int, etag: str | None) -> Any:
            condition = {} if etag is None else {"IfMatch": f'"{etag}"'}
            part = {} if offset == 0 else {"Range": f"bytes={offset}-"}
            answer = self._ask(uri, lambda client: client.get_object(Bucket=bucket, Key=key, **condition, **part))
            if etag not in (None, _etag(answer)):
                answer["Body"].close()
                raise ChangedError(f"{redact(uri)} was replaced since it was planned.")
            if offset and not answer.get("ContentRange", "").startswith(f"bytes {offset}-"):
                answer["Body"].close()
                raise StoreError(f"{redact(uri)}: the store does not give a part of an object (it ignored Range).")
            return answer

        return io.BufferedReader(_Reader(uri, request, etag, self._patience), _CHUNK)

    def put(self, uri: str, data: bytes | Path) -> None:
        """See `Backend`. A large file goes in several parts at once."""
        bucket, key = _split(uri)
        if isinstance(data, bytes):
            self._ask(uri, lambda client: client.put_object(Bucket=bucket, Key=key, Body=data))
        else:
            self._ask(uri, lambda client: _upload(client, data, bucket, key))

    def create(self, uri: str, data: bytes) -> bool:
        """See `Backend`. Never a conditional multipart upload: several racers can win that."""
        bucket, key = _split(uri)
        try:
            self._ask(uri, lambda client: client.put_object(Bucket=bucket, Key=key, Body=data, IfNoneMatch="*"))
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
            page = self._ask(selection.directory, lambda client: client.list_objects_v2(**query))
            for entry in page.get("Contents", ()):
                if not entry["Key"].endswith("/"):  # what some tools leave to stand for a directory
                    uri = selection.directory + entry["Key"][len(prefix) :]
                    yield ObjectInfo(uri=uri, bytes=entry["Size"], etag=_etag(entry))
            if not page.get("IsTruncated"):
                return
            query["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, uri: str) -> None:
        """See `Backend`."""
        bucket, key = _split(uri)
        self._ask(uri, lambda client: client.delete_object(Bucket=bucket, Key=key))

    def _ask(self, uri: str, operation: Callable[[Any], T]) -> T:
        """The answer to one operation, with new credentials where the first ones had expired."""
        try:
            client = self._connected(None)
            try:
                return operation(client)
            except boto.ClientError as error:
                if error.response["Error"]["Code"] not in _EXPIRED:
                    raise
            return operation(self._connected(client))
        except _FAILURES as error:
            raise _translate(uri, error, self._patience) from None

    def _connected(self, stale: Any) -> Any:
        """The client, made when it is first needed, and again where it is the stale one. All threads share it."""
        with self._lock:
            if self._client is None or self._client is stale:
                config = Config(
                    connect_timeout=self._patience.connect_s,
                    read_timeout=self._patience.read_s,
                    retries={"mode": "standard", "total_max_attempts": self._patience.attempts},
                    max_pool_connections=64,
                    tcp_keepalive=True,
                )
                try:
                    self._client = boto3.session.Session().client("s3", config=config)
                except ValueError as error:
                    raise UserError(
                        f"The settings for S3 in the environment are not valid: {redact(str(error))}."
                    ) from None
            return self._client


class _Reader(io.RawIOBase):
    """Reads an object front to back with one request. A seek, and a transfer that broke off, begin another one there.

    The requests after the first ask for the very object that the first one met, so a mixture of two is never read.
    """

    _body: Any = None

    def __init__(
        self, uri: str, request: Callable[[int, str | None], Any], etag: str | None, patience: Patience
    ) -> None:
        answer = request(0, etag)
        self._uri, self._request, self._patience = uri, request, patience
        self._etag, self._size = _etag(answer), int(answer["ContentLength"])
        self._body = answer["Body"]
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        target = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if target < 0:
            raise ValueError(f"cannot seek to {target}, before the first byte")
        if target != self._position:
            self._drop()
            self._position = target
        return target

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        chunk = self._chunk(len(view))
        view[: len(chunk)] = chunk
        return len(chunk)

    def readall(self) -> bytes:
        return b"".join(iter(lambda: self._chunk(_CHUNK), b""))

    def close(self) -> None:
        if not self.closed:
            self._drop()
        super().close()

    def _chunk(self, amount: int) -> bytes:
        """The next bytes, at most `amount`; none at the end."""
        left = self._size - self._position
        if amount == 0 or left <= 0:
            return b""
        trouble = ""
        for _ in self._patience.tries():
            if self._body is None:
                self._body = self._request(self._position, self._etag)["Body"]
            try:
                chunk: bytes = self._body.read(min(amount, left, _CHUNK))
                self._position += len(chunk)
                if self._position == self._size:
                    self._body.read(1)  # compares the checksum, where the store sent one
                if chunk:
                    return chunk
                trouble = "it ended early"
            except boto.FlexibleChecksumError:
                self._drop()
                raise StoreError(f"{redact(self._uri)} arrived damaged: its checksum does not fit.") from None
            except _BROKEN as error:
                trouble = type(error).__name__
            self._drop()
        raise UnreachableError(
            f"{redact(self._uri)}: the transfer broke off at byte {self._position} of {self._size}, "
            f"{self._patience.attempts} times ({trouble})."
        )

    def _drop(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


def _split(uri: str) -> tuple[str, str]:
    bucket, key = split_bucket(uri)
    if not key:
        raise NotFoundError(f"{redact(uri)} names a bucket, not an object in it.")
    return bucket, key


def _upload(client: Any, file: Path, bucket: str, key: str) -> None:
    try:
        client.upload_file(str(file), bucket, key, Config=TransferConfig(max_concurrency=4))
    except S3UploadFailedError as error:  # wraps what the store answered
        raise (error.__context__ if isinstance(error.__context__, boto.ClientError) else error) from None


def _etag(answer: Any) -> str:
    return str(answer.get("ETag", "")).strip('"')


def _translate(uri: str, error: Exception, patience: Patience) -> LabelingError:
    """The sentence that the user sees."""
    shown = redact(uri)
    if isinstance(error, boto.ClientError):
        return _refusal(shown, error, patience)
    kind, text = type(error).__name__, redact(" ".join(str(error).split()))
    if isinstance(error, _NO_CREDENTIALS):
        return AccessError(f"{shown}: no credentials for S3 were found in the environment ({text}).")
    if isinstance(error, (boto.ParamValidationError, boto.ValidationError, boto.EndpointProviderError)):
        return UserError(f"{shown} is not valid: {text}.")
    if isinstance(error, (boto.ConnectionError, boto.HTTPClientError)):
        endpoint = urlsplit(str(error.kwargs.get("endpoint_url", "")))
        host = f"{endpoint.scheme}://{endpoint.netloc.rpartition('@')[2]}" if endpoint.netloc else "the store"
        return UnreachableError(f"{shown}: {host} does not answer ({kind}, {patience.attempts} tries).")
    return StoreError(f"{shown}: {kind}: {text}.")


def _refusal(shown: str, error: boto.ClientError, patience: Patience) -> LabelingError:
    """The sentence for an answer of the store that is an error."""
    code = str(error.response["Error"].get("Code", ""))
    status = int(error.response["ResponseMetadata"].get("HTTPStatusCode", 0))
    if code == "NoSuchBucket":
        return NotFoundError(f"{shown}: there is no such bucket.")
    if status == 404:
        return NotFoundError(f"{shown}: there is no such object.")
    if code in _EXPIRED:
        return AccessError(f"{shown}: the credentials have expired ({code}).")
    if status in (401, 403):
        return AccessError(f"{shown}: access was refused ({code}); check the credentials and what they allow.")
    if status in (409, 412, 416):
        return ChangedError(f"{shown} was replaced while it was read ({code}).")
    if status == 501:
        return UserError(f"{shown}: the store does not know this operation ({code}).")
    if status >= 500 or status == 429:
        return UnreachableError(f"{shown}: the store answers {status} {code} ({patience.attempts} tries).")
    return StoreError(
        f"{shown}: the store answers {status} {code}: {redact(str(error.response['Error'].get('Message')))}"
    )
