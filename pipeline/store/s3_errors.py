"""What S3 and boto3 say when something goes wrong, as errors of ours: the sentence that the user sees."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import urllib3.exceptions
from boto3.exceptions import Boto3Error
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

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
from pipeline.store.uris import redact


class CutShort(Exception):  # noqa: N818 it never leaves this package
    """The head of an answer came to its end too early, which http.client and boto3 take for a whole one."""


#: What boto3 raises; its parsers, a ValueError where a number in the head of an answer was cut off; its search for the
#: region of a bucket, a RecursionError where the endpoint redirects whatever it is asked; and what urllib3 says of a
#: refusal that breaks off in the middle of its body, which boto3 hands on as it is.
FAILURES = (
    boto.ClientError,
    boto.BotoCoreError,
    Boto3Error,
    CutShort,
    ValueError,
    RecursionError,
    urllib3.exceptions.HTTPError,
)

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
_LOST = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    ResponseParserError,
    CutShort,
    ValueError,
    urllib3.exceptions.HTTPError,
)
_EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired")
_BUSY = ("InternalError", "RequestTimeout", "SlowDown", "OperationAborted", "ConditionalRequestConflict")
_CLOCK = ("RequestTimeTooSkewed", "RequestInTheFuture")


def whole(answer: Any, *names: str) -> Any:
    """The answer, which has what each whole one has.

    Raises:
        CutShort: it has not.
    """
    if any(name not in answer for name in names):
        raise CutShort(f"its answer lacks {' and '.join(name for name in names if name not in answer)}")
    return answer


def status_of(error: boto.ClientError) -> int:
    """The HTTP status of a refusal."""
    return int(error.response["ResponseMetadata"].get("HTTPStatusCode", 0))


def reason(error: Exception) -> str:
    """Why something was tried again, in a word: the code of the store, or the kind of the error."""
    return code(error) or type(error).__name__


def code(error: Exception) -> str:
    """The code that the store gave for its refusal; "" where it is none."""
    return str(error.response["Error"].get("Code", "")) if isinstance(error, boto.ClientError) else ""


def expired(error: Exception) -> bool:
    """Whether the credentials were good once."""
    return code(error) in _EXPIRED


def translate(uri: str, error: Exception, patience: Patience) -> LabelingError:
    """The error of ours for one of boto3's. UnreachableError: to try again may help."""
    shown = redact(uri)
    if isinstance(error, boto.ClientError):
        return _refusal(shown, error, patience)
    if isinstance(error, RecursionError):
        return _elsewhere(shown, "each request is redirected")
    kind, text = type(error).__name__, redact(" ".join(str(error).split()))
    if isinstance(error, _NO_CREDENTIALS):
        return AccessError(f"{shown}: no credentials for S3 were found in the environment ({text}).")
    if isinstance(error, (boto.ParamValidationError, boto.ValidationError, boto.EndpointProviderError)):
        return UserError(f"{shown} is not valid: {text}.")
    if isinstance(error, _LOST):
        endpoint = urlsplit(str(getattr(error, "kwargs", {}).get("endpoint_url", "")))
        host = f"{endpoint.scheme}://{endpoint.netloc.rpartition('@')[2]}" if endpoint.netloc else "the store"
        return UnreachableError(f"{shown}: {host} does not answer ({kind}, {patience.attempts} tries).")
    return StoreError(f"{shown}: {kind}: {text}.")


def _refusal(shown: str, error: boto.ClientError, patience: Patience) -> LabelingError:
    """The sentence for an answer of the store that is an error."""
    code = str(error.response["Error"].get("Code", ""))
    status = status_of(error)
    if code == "NoSuchBucket":
        return NotFoundError(f"{shown}: there is no such bucket.")
    if status == 404:
        return NotFoundError(f"{shown}: there is no such object.")
    if code in _EXPIRED:
        return AccessError(f"{shown}: the credentials have expired ({code}).")
    if code in _CLOCK:
        return AccessError(f"{shown}: the clock of this machine and that of the store differ too much ({code}).")
    if status == 501:
        return UserError(f"{shown}: the store does not know this operation ({code}).")
    if code in _BUSY or status >= 500 or status in (409, 429):
        return UnreachableError(f"{shown}: the store answers {status} {code} ({patience.attempts} tries).")
    if status in (401, 403):
        return AccessError(f"{shown}: access was refused ({code}); check the credentials and what they allow.")
    if status in (412, 416):
        return ChangedError(f"{shown} was replaced while it was read ({code}).")
    if 300 <= status < 400:
        return _elsewhere(shown, f"{status} {code}")
    return StoreError(
        f"{shown}: the store answers {status} {code}: {redact(str(error.response['Error'].get('Message')))}"
    )


def _elsewhere(shown: str, why: str) -> UserError:
    return UserError(
        f"{shown}: the bucket is served elsewhere ({why}); set AWS_DEFAULT_REGION, or AWS_ENDPOINT_URL, to where it is."
    )
