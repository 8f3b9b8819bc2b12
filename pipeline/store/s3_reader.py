"""Reading an object of S3 front to back, whatever happens to the transfer."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO

import urllib3.exceptions
from botocore import exceptions as boto

from pipeline.errors import ChangedError, StoreError, UnreachableError
from pipeline.store.patience import Patience, Retries
from pipeline.store.uris import redact

if TYPE_CHECKING:
    from typing_extensions import Buffer

_FIRST = 64 << 10  # bytes that are read at once, to see that there is an object at all
_CHUNK = 1 << 20  # what is read at a time, and the most that a broken transfer takes along with it

_BROKEN = (boto.BotoCoreError, urllib3.exceptions.HTTPError, OSError)


def buffered(
    uri: str, request: Callable[[int, str | None], Any], etag: str | None, patience: Patience, retries: Retries
) -> BinaryIO:
    """A buffered reader of an object.

    Args:
        uri: the object, for the sentences.
        request: asks for the object from an offset on, provided it has an etag -> the answer of boto3.
        etag: the one that is wanted; None for any.
        patience: how often a transfer may break off without a byte in between.
        retries: where that is counted.
    """
    return io.BufferedReader(_Reader(uri, request, etag, patience, retries), _CHUNK)


class _Reader(io.RawIOBase):
    """Reads an object front to back with one request. A seek, and a transfer that broke off, begin another one there.

    The requests after the first ask for the very object that the first one met, so a mixture of two is never read. What
    the head of an answer says is believed once a byte of the body has come: a head that was cut short, in the middle of
    a number for instance, looks like a whole one.
    """

    _body: Any = None

    def __init__(
        self,
        uri: str,
        request: Callable[[int, str | None], Any],
        etag: str | None,
        patience: Patience,
        retries: Retries,
    ) -> None:
        self._uri, self._request, self._patience, self._retries = uri, request, patience, retries
        self._etag, self._size = etag, -1
        self._position, self._ahead = 0, b""
        self._fetch(_FIRST)

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
        if amount and not self._ahead and self._position < self._size:
            self._fetch(min(amount, _CHUNK))
        chunk, self._ahead = self._ahead[:amount], self._ahead[amount:]
        self._position += len(chunk)
        return chunk

    def _fetch(self, amount: int) -> None:
        """Read ahead, from the position on."""
        trouble = ""
        for attempt in self._patience.tries():
            if attempt > 1:
                self._retries.add(trouble)
            head = None
            if self._body is None:
                head = self._request(self._position, self._etag)
                self._body = head["Body"]
            try:
                self._ahead = self._body.read(amount)
                if head is not None and (self._ahead or head.get("ContentLength") == 0):
                    self._believe(head)
                if self._position + len(self._ahead) == self._size:
                    self._body.read(1)  # compares the checksum, where the store sent one
                    return
                if self._ahead:
                    return
                trouble = "EndedEarly"
            except boto.FlexibleChecksumError:
                self._drop()
                raise StoreError(f"{redact(self._uri)} arrived damaged: its checksum does not fit.") from None
            except _BROKEN as error:
                trouble = type(error).__name__
            self._drop()
        raise UnreachableError(
            f"{redact(self._uri)}: the transfer broke off at byte {self._position} of {max(self._size, 0)}, "
            f"{self._patience.attempts} times ({trouble})."
        )

    def _believe(self, head: Any) -> None:
        """Take in what the head of an answer says.

        Raises:
            ChangedError: the object is another one.
            StoreError: this is not the part of it that was asked for.
        """
        etag = str(head.get("ETag", "")).strip('"')
        if self._etag not in (None, etag):
            raise ChangedError(f"{redact(self._uri)} was replaced since it was planned.")
        if self._position and not head.get("ContentRange", "").startswith(f"bytes {self._position}-"):
            raise StoreError(f"{redact(self._uri)}: the store does not give a part of an object (it ignored Range).")
        if self._size < 0:
            self._etag, self._size = etag, int(head["ContentLength"])

    def _drop(self) -> None:
        self._ahead = b""
        if self._body is not None:
            self._body.close()
            self._body = None
