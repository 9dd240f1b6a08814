"""Classify the errors of an object store, and retry those that may pass.

Bounded retries with exponential backoff and full jitter, and one log line each. Refusals (no
permission, no such bucket, wrong credentials) are not retried.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pipeline.counts import count
from pipeline.errors import PipelineError, StorageRefused, TransientError

log = logging.getLogger(__name__)

T = TypeVar("T")

# If 20 % of requests fail, 0.2⁹ of them, one in two million, fail for good.
_ATTEMPTS = "9"
_FIRST_WAIT_S = 0.2  # maximum; doubles each time: all attempts take 25 s on average
_LONGEST_WAIT_S = 20.0

# pyarrow has the kind of error in the text only.
_ARROW_KIND = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))?")
_PASSING = re.compile(
    "SLOW_DOWN|THROTTL|NETWORK_CONNECTION|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|TIMEOUT"
)
_REFUSED = re.compile(
    "ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|TOKEN|CREDENTIAL|UNRECOGNIZED_CLIENT|"
    "NOT_AUTHORIZED|OPT_IN_REQUIRED|ACCOUNT"
)
_PASSING_CODES = (errno.EBUSY, errno.EREMOTEIO)  # of s3fs for 503 and 409, and for 500
_CLIENTS = ("botocore", "aiobotocore", "aiohttp")
_PASSING_ERRORS = {  # a failed request, or a response that broke off
    "HTTPClientError",
    "ConnectionError",
    "IncompleteReadError",
    "ClientPayloadError",
}
_NO_CREDENTIALS = ("Credentials", "ProfileNotFound", "Token", "SSO", "ConfigParseError")


def attempts() -> int:
    """Maximum number of attempts of a request; AWS_MAX_ATTEMPTS overrides it."""
    return max(1, int(os.environ.get("AWS_MAX_ATTEMPTS", _ATTEMPTS)))


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, (TimeoutError, ConnectionError)):
        return True
    kind, status = _arrow(error)
    if _PASSING.search(kind) or "curlCode" in str(error):
        return True
    status = status or http_status(error)
    if status:
        return status >= 500 or status in (408, 409, 429)
    if isinstance(error, OSError) and error.errno in _PASSING_CODES:
        return True
    names = {k.__name__ for k in type(error).__mro__ if k.__module__.startswith(_CLIENTS)}
    return bool(names & _PASSING_ERRORS)


def is_refusal(error: BaseException) -> bool:
    """Whether the store refused, or no credentials were found: a retry would not help."""
    if isinstance(error, PermissionError):
        return True
    kind, status = _arrow(error)
    status = status or http_status(error)
    # A response to HEAD has no text; a 400 then means an expired token.
    if _REFUSED.search(kind) or status in (401, 403) or (status == 400 and not _says_why(error)):
        return True
    of_botocore = type(error).__module__.startswith(("botocore", "aiobotocore"))
    return of_botocore and any(word in type(error).__name__ for word in _NO_CREDENTIALS)


def _arrow(error: BaseException) -> tuple[str, int]:
    found = _ARROW_KIND.search(str(error)) if isinstance(error, OSError) else None
    return (found[1], int(found[2] or 0)) if found else ("", 0)


def http_status(error: BaseException) -> int:
    """HTTP status of botocore's error, or of the one that s3fs translated; 0 for none."""
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _response(error: BaseException) -> dict[str, Any]:
    found = (getattr(one, "response", None) for one in (error, error.__cause__))
    return next(filter(None, found), {})


def _says_why(error: BaseException) -> bool:
    kind, _ = _arrow(error)
    code = _response(error).get("Error", {}).get("Code", "400")
    return kind not in ("", "UNKNOWN") or code != "400"


def reason(error: BaseException) -> str:
    """The store's response, in a few words."""
    kind, status = _arrow(error)
    if kind:
        return kind if kind != "UNKNOWN" else f"HTTP status {status}"
    if answer := _response(error).get("Error"):
        code, status = answer.get("Code"), http_status(error)
        return f"HTTP status {code}" if code == str(status) else f"{code}, HTTP status {status}"
    return " ".join(str(error).split())[:200] or type(error).__name__


def answer_error(error: BaseException, location: str) -> PipelineError | None:
    """The pipeline's error for a refusal or a passing failure; None for any other error."""
    if is_refusal(error):
        return StorageRefused(
            f"{location}: access is refused ({reason(error)}); check the credentials in the "
            "environment, profile or role, their permissions, and the bucket's name"
        )
    if is_passing(error):
        return TransientError(
            f"{location}: the object store keeps failing ({reason(error)}), {attempts()} times "
            "in a row; the same run id continues where this one stopped"
        )
    return None


@contextlib.contextmanager
def answers_of(location: str) -> Iterator[None]:
    """Translate the store's errors: into the pipeline's, or into an OSError."""
    try:
        yield
    except (FileNotFoundError, PipelineError):
        raise
    except Exception as error:
        if ours := answer_error(error, location):
            raise ours from error
        if type(error).__module__.startswith(("botocore", "aiobotocore")):
            raise OSError(str(error)) from error
        raise


def retried(call: Callable[[], T], location: str) -> T:
    """Call until it succeeds, is refused, or has failed too often; the call must be repeatable.

    Raises:
        TransientError: It failed every time.
        StorageRefused: The store refused.
    """
    with answers_of(location):
        for attempt in range(1, attempts()):
            try:
                return call()
            except Exception as error:
                if isinstance(error, FileNotFoundError) or not is_passing(error):
                    raise
                wait_s = backoff_s(attempt)
                log_retry(location, reason(error), attempt, wait_s)
                time.sleep(wait_s)
        return call()


def backoff_s(attempt: int) -> float:
    """Seconds to wait after so many failures: random, up to a limit that doubles."""
    return random.uniform(0, min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (attempt - 1)))


def log_retry(what: str, why: str, attempt: int, wait_s: float | None = None) -> None:
    """Count and log one retry of a request."""
    count("retries", kind="request")
    waiting = f"; again in {wait_s:.1f} s" if wait_s is not None else ""
    log.warning("%s: %s, attempt %d of %d%s", what, why, attempt, attempts(), waiting)
