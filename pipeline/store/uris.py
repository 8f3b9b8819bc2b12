"""URIs as text: taking them apart, joining them, choosing by wildcard, and hiding secrets before they are shown."""

from __future__ import annotations

import os.path
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from urllib.parse import unquote

from pipeline.errors import UserError

#: Objects whose name begins so are the store's own (half-written files, probes) and are never listed.
HIDDEN = ".patchlabel-"

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*", re.IGNORECASE)
_WILDCARD = re.compile(r"[*?\[]")
_TOKEN = re.compile(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")
_USER = re.compile(  # a password may hold a "/" or a "@"; what looks like a port is none
    r"(?<=://)[^\s/@:\[\]]*:(?!\d{1,5}(?:[/?#,;\s'\")]|$))(?:[^/\s]*|[^\s@]*)@|(?<=http://)[^/\s@]*@|(?<=https://)[^/\s@]*@",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"(?<![a-z0-9])((?:(?:account|access|secret|shared)[\w-]*?(?:key|signature|token)|password|authorization)\s*[=:]\s*"
    r"(?:bearer\s+)?|bearer\s+)[^\s;,&\"']{8,}",
    re.IGNORECASE,
)
_QUERY = re.compile(r"(?<=\?)[^\s\"'<>?=]+=[^\s\"'<>]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """An object or a file: where it is, its size, and a text that changes when its content does.

    Attributes:
        modified: when it was written, in seconds since 1970 by the clock of the storage, to the precision at hand; None
            where the storage does not tell.
    """

    uri: str
    bytes: int
    etag: str
    modified: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """What a writer left behind that did not come to its end: a hidden object, or an upload in parts.

    Attributes:
        uri: the hidden object, or the one that the upload was meant to become.
        bytes: its size; 0 for an upload, of which the storage does not tell.
        modified: when it was written or begun; see `ObjectInfo`.
        upload: the id of an upload in parts; None for an object.
    """

    uri: str
    bytes: int = 0
    modified: float | None = None
    upload: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a listing asks for.

    Attributes:
        directory: where to look: a URI that ends in "/", or "" for the working directory.
        start: how the wanted names under `directory` begin, as far as no wildcard stands in the way.
        depth: how many levels below `directory` to look; None for all.
        pattern: which names under `directory` to take; None for all.
    """

    directory: str
    start: str = ""
    depth: int | None = None
    pattern: re.Pattern[str] | None = None

    def takes(self, uri: str) -> bool:
        """Whether an object found under `directory` is wanted."""
        return self.pattern is None or self.pattern.fullmatch(uri[len(self.directory) :]) is not None


def hidden(found: Iterable[ObjectInfo]) -> Iterator[Unfinished]:
    """The hidden ones of the objects that were found."""
    for info in found:
        if name(info.uri).startswith(HIDDEN):
            yield Unfinished(uri=info.uri, bytes=info.bytes, modified=info.modified)


def scheme(uri: str) -> str:
    """The scheme of a URI in lower case; "" for a local path.

    >>> scheme("S3://bucket/key"), scheme("data/images")
    ('s3', '')
    """
    head, separator, _ = uri.partition("://")
    if not separator:
        return ""
    if not _SCHEME.fullmatch(head):
        raise UserError(f"{redact(uri)} is neither a path nor a URI of one scheme such as s3://bucket/key.")
    return head.lower()


def local_path(uri: str) -> str:
    """The path that a local path or a file:// URI stands for."""
    if not uri.lower().startswith("file://"):
        return uri
    host, slash, path = uri[7:].partition("/")
    if host not in ("", "localhost"):
        raise UserError(f"{redact(uri)} names the host {host!r}; write file:///absolute/path for a local file.")
    return unquote(slash + path)


def absolute(uri: str) -> str:
    """The same place, independent of the working directory: a relative local path becomes absolute."""
    return uri if scheme(uri) else os.path.abspath(uri) + ("/" if uri.endswith("/") else "")  # noqa: PTH100 keeps links


def split_bucket(uri: str) -> tuple[str, str]:
    """The bucket and the key of s3://bucket/key; the key is taken as it stands, and may be empty.

    >>> split_bucket("s3://bucket/a//b?.jpg")
    ('bucket', 'a//b?.jpg')
    """
    bucket, _, key = uri.partition("://")[2].partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise UserError(
            f"{redact(uri)} names no bucket; write s3://bucket/key, without wildcards in the bucket's name."
        )
    return bucket, key


def join(base: str, *parts: str) -> str:
    """A place below another.

    >>> join("s3://bucket", "run/", "commits"), join("/", "data"), join("", "data")
    ('s3://bucket/run/commits', '/data', 'data')
    """
    for part in parts:
        base = f"{base}{'' if not base or base.endswith('/') else '/'}{part.lstrip('/')}"
    return base


def name(uri: str) -> str:
    """The last part of a URI, without the query of an http URL.

    >>> name("s3://bucket/a/b.tar"), name("https://host/b.tar?token=1"), name("images/")
    ('b.tar', 'b.tar', 'images')
    """
    if scheme(uri) in ("http", "https"):
        uri = uri.partition("?")[0]
    return uri.rstrip("/").rpartition("/")[2]


def redact(text: str) -> str:
    """A text without the user names, passwords and signed queries of its URLs, and without keys and tokens by name.

    >>> redact("https://me:secret@host/a.tar?X-Amz-Signature=123 did not answer")
    'https://***@host/a.tar?*** did not answer'
    """
    return _NAMED.sub(r"\1***", _QUERY.sub("***", _USER.sub("***@", text)))


def selection(uri: str, *, literal: bool = False) -> Selection:
    """What a listing of a URI asks for: all below it, or what its wildcards match.

    `*` and `?` stay within one level, `**` crosses levels, `[ab]` and `[!ab]` choose a character. A pattern that ends
    in "/" takes all below the directories that it matches.

    Args:
        uri: a "directory", or a pattern.
        literal: whether wildcard characters stand for themselves.

    >>> chosen = selection("s3://bucket/data/train-*.tar")
    >>> chosen.directory, chosen.start, chosen.depth, chosen.takes("s3://bucket/data/train-1.tar")
    ('s3://bucket/data/', 'train-', 1, True)
    """
    wildcard = None if literal or scheme(uri) in ("http", "https") else _WILDCARD.search(uri)
    if wildcard is None:
        return Selection(directory=join(uri, "") if uri else "")
    cut = uri.rfind("/", 0, wildcard.start()) + 1
    directory, wanted = uri[:cut], uri[cut:]
    if wanted.endswith("/"):
        wanted += "**"
    try:
        pattern = re.compile("".join(map(_expression, _TOKEN.findall(wanted))), re.DOTALL)
    except re.error as error:
        raise UserError(f"{redact(uri)} is no pattern: {error}.") from None
    depth = None if "**" in wanted else wanted.count("/") + 1
    return Selection(directory=directory, start=uri[cut : wildcard.start()], depth=depth, pattern=pattern)


def _expression(token: str) -> str:
    """A token of a wildcard pattern as a regular expression."""
    fixed = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    if token in fixed:
        return fixed[token]
    if len(token) == 1:
        return re.escape(token)
    inner = token[1:-1].replace("\\", "\\\\").replace("[", "\\[")
    return f"(?!/)[{'^' + inner[1:] if inner.startswith('!') else inner}]"
