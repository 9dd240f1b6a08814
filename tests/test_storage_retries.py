"""What a store's answers mean, in the words of both clients, and how long we wait."""

import errno
import logging

import pytest
from aiohttp import ClientPayloadError
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    IncompleteReadError,
    NoCredentialsError,
)
from s3fs.errors import translate_boto_error

from pipeline.errors import StorageRefused, TransientError
from pipeline.storage import retries
from pipeline.storage.retries import backoff_s, is_passing, is_refusal, reason, retried


def arrow(text: str) -> OSError:
    return OSError(f"When reading information for key 'k' in bucket 'b': AWS Error {text}")


def botocore(code: str, status: int) -> OSError:
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    translated = translate_boto_error(ClientError(answer, "GetObject"))
    assert isinstance(translated, OSError)
    return translated


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (arrow("SLOW_DOWN during HeadObject operation: x"), "SLOW_DOWN"),
        (arrow("SERVICE_UNAVAILABLE during GetObject operation: "), "SERVICE_UNAVAILABLE"),
        (arrow("INTERNAL_FAILURE during GetObject operation: x"), "INTERNAL_FAILURE"),
        (arrow("NETWORK_CONNECTION during GetObject operation: curlCode: 7"), "NETWORK_CONNECTION"),
        (arrow("UNKNOWN (HTTP status 502) during GetObject operation"), "HTTP status 502"),
        (botocore("SlowDown", 503), "SlowDown, HTTP status 503"),
        (botocore("503", 503), "HTTP status 503"),
        (botocore("InternalError", 500), "InternalError, HTTP status 500"),
        (botocore("BadGateway", 502), "BadGateway, HTTP status 502"),
        (
            botocore("ConditionalRequestConflict", 409),
            "ConditionalRequestConflict, HTTP status 409",
        ),
        (EndpointConnectionError(endpoint_url="http://s3"), "Could not connect"),
        (ConnectionResetError("reset by peer"), "reset by peer"),
        (ClientPayloadError("Response payload is not completed"), "Response payload"),
        (IncompleteReadError(actual_bytes=1, expected_bytes=2), "1 read, but total"),
        (TimeoutError("too slow"), "too slow"),
    ],
)
def test_what_passes(error: Exception, text: str) -> None:
    assert (is_passing(error), is_refusal(error)) == (True, False)
    assert reason(error).startswith(text)


@pytest.mark.parametrize(
    "error",
    [
        arrow("ACCESS_DENIED during HeadObject operation: No response body."),
        arrow("INVALID_ACCESS_KEY_ID during PutObject operation: x"),
        arrow("SIGNATURE_DOES_NOT_MATCH during PutObject operation: x"),
        arrow("UNKNOWN (HTTP status 400) during HeadObject operation: No response body."),
        botocore("AccessDenied", 403),
        botocore("InvalidAccessKeyId", 403),
        botocore("SignatureDoesNotMatch", 403),
        botocore("ExpiredToken", 400),
        botocore("403", 403),
        botocore("400", 400),  # HEAD with an expired token
        NoCredentialsError(),
    ],
)
def test_what_is_refused(error: Exception) -> None:
    assert (is_passing(error), is_refusal(error)) == (False, True)


@pytest.mark.parametrize(
    "error",
    [
        botocore("NoSuchKey", 404),
        botocore("NoSuchBucket", 404),
        botocore("InvalidArgument", 400),
        botocore("PreconditionFailed", 412),
        arrow("NO_SUCH_BUCKET during PutObject operation: x"),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("no"),
    ],
)
def test_what_is_neither(error: Exception) -> None:
    assert (is_passing(error), is_refusal(error)) == (False, False)


def test_waits_grow_up_to_a_limit_and_differ() -> None:
    waits = [[backoff_s(attempt) for _ in range(200)] for attempt in range(1, 13)]
    limits = [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 20, 20, 20, 20, 20]
    for some, limit in zip(waits, limits, strict=True):
        assert 0 <= min(some) < limit / 4
        assert limit * 3 / 4 < max(some) <= limit
        assert len(set(some)) == len(some)


@pytest.fixture
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_FIRST_WAIT_S", 0.0)


class Store:
    """Answers one after the other; counts how often it was asked."""

    def __init__(self, *answers: Exception | str) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self) -> str:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.usefixtures("_no_waits")
def test_each_retry_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    store = Store(botocore("SlowDown", 503), TimeoutError("too slow"), "content")
    with caplog.at_level(logging.WARNING):
        assert retried(store, "s3://b/k") == "content"
    assert [record.getMessage() for record in caplog.records] == [
        "s3://b/k: SlowDown, HTTP status 503, attempt 1 of 9; again in 0.0 s",
        "s3://b/k: too slow, attempt 2 of 9; again in 0.0 s",
    ]


@pytest.mark.usefixtures("_no_waits")
@pytest.mark.parametrize(
    ("answer", "asked", "kind"),
    [
        (botocore("SlowDown", 503), 9, TransientError),
        (botocore("AccessDenied", 403), 1, StorageRefused),
        (botocore("NoSuchKey", 404), 1, FileNotFoundError),
        (botocore("InvalidArgument", 400), 1, OSError),
    ],
)
def test_bounded_and_only_where_it_may_help(
    answer: Exception, asked: int, kind: type[Exception]
) -> None:
    store = Store(answer)
    with pytest.raises(kind):
        retried(store, "s3://b/k")
    assert store.asked == asked
