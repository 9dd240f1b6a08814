"""The two S3 clients, which agree because one is made from the other.

s3fs lists and writes; pyarrow reads, because its reads do not hold Python's lock. It gets endpoint,
region and credentials as botocore resolved them for s3fs. Retries are ours for reads, botocore's
for the rest (infra/decisions/0012-two-clients-one-behaviour.md).
"""

from __future__ import annotations

import functools
import json
import os
import re
import time
from typing import Any

import pyarrow as pa
from pyarrow import fs

from pipeline.errors import PipelineError
from pipeline.logs import current_slice, in_slice
from pipeline.storage.retries import (
    answer_error,
    answers_of,
    attempts,
    backoff_s,
    http_status,
    is_passing,
    is_refusal,
    log_retry,
    reason,
    retried,
)

# The config's `storage:` section as JSON, for this process and every worker; it holds no secret.
SETTINGS_VARIABLE = "DEC_STORAGE"

# Maximum seconds without a byte: longer than a store takes to complete a large upload.
_READ_TIMEOUT_S = 60
_CONNECT_TIMEOUT_S = 10
_LARGEST_PUT = 5 * 2**30


def use(settings: dict[str, Any]) -> None:
    """Use the config's `storage` section in this process and those that it starts."""
    chosen = {name: value for name, value in settings.items() if value}
    if chosen:
        os.environ[SETTINGS_VARIABLE] = json.dumps(chosen)
    else:
        os.environ.pop(SETTINGS_VARIABLE, None)
    forget()


def settings_here() -> dict[str, Any]:
    """The settings in use, from the config or else from the environment."""
    here = {
        "endpoint": os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        "region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
    }
    return {name: value for name, value in here.items() if value} | _settings()


def settings_for_workers() -> dict[str, str]:
    """Environment variables that give workers on other machines the same settings."""
    settings = settings_here()
    return {SETTINGS_VARIABLE: json.dumps(settings)} if settings else {}


def forget() -> None:
    """Drop cached clients, so that new ones follow the environment."""
    for cached in (_settings, _s3fs, _arrow, _region_of):
        cached.cache_clear()


@functools.cache
def _settings() -> dict[str, Any]:
    return dict(json.loads(os.environ.get(SETTINGS_VARIABLE, "{}")))


def client(location: str, *, retries: bool = True) -> Any:
    """The s3fs client for a location."""
    bucket = _name(location).partition("/")[0]
    return _s3fs(bucket in _settings().get("anonymous_buckets", ()), attempts() if retries else 1)


@functools.cache
def _s3fs(anonymous: bool, most_attempts: int) -> Any:
    import s3fs
    from aiobotocore.session import AioSession

    settings = _settings()
    session = AioSession()
    if most_attempts > 1:
        session.register("needs-retry.s3", functools.partial(_log_retry_of, most_attempts))
    encryption = {
        "ServerSideEncryption": settings.get("encryption"),
        "SSEKMSKeyId": settings.get("kms_key"),
    }
    made = s3fs.S3FileSystem(
        anon=anonymous,
        session=session,
        endpoint_url=settings.get("endpoint"),
        client_kwargs={"region_name": settings.get("region") or os.environ.get("AWS_REGION")},
        config_kwargs={
            "s3": {"addressing_style": settings.get("addressing", "auto")},
            "retries": {"mode": "standard", "total_max_attempts": most_attempts},
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "read_timeout": _READ_TIMEOUT_S,
        },
        s3_additional_kwargs={name: value for name, value in encryption.items() if value},
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    made.retries = 1  # s3fs's own would multiply botocore's
    return made


def _log_retry_of(
    most: int,
    response: Any = None,
    caught_exception: BaseException | None = None,
    attempts: int = 1,  # so far
    operation: Any = None,
    **_: Any,
) -> None:
    """Log retries; botocore asks its listeners after every response whether to retry."""
    status = response[0].status_code if response else 0
    if attempts < most and (caught_exception or status >= 500 or status in (408, 429)):
        code = response[1].get("Error", {}).get("Code") if response else None
        failure = f"{code}, HTTP status {status}" if response else type(caught_exception).__name__
        log_retry(f"S3 {operation.name}", failure, attempts)


def object_store_options(location: str) -> dict[str, str]:
    """Options of Rust's object_store, as deltalake takes them; no credentials.

    Those it finds in the environment, as it does everything else that is not here.
    """
    settings = settings_here()
    endpoint = settings.get("endpoint") or ""
    anonymous = _name(location).partition("/")[0] in settings.get("anonymous_buckets", ())
    chosen = {
        "endpoint_url": endpoint,
        "allow_http": "true" if endpoint.startswith("http:") else None,
        "region": settings.get("region"),
        "virtual_hosted_style_request": "true" if settings.get("addressing") == "virtual" else None,
        "skip_signature": "true" if anonymous else None,
    }
    # Retried for a minute, where the default is three; the run can be run again.
    options = {"max_retries": "6", "retry_timeout": "60s"}
    return options | {name: value for name, value in chosen.items() if value}


# --------------------------------------------------------------------------------- for pyarrow


def arrow_filesystem(location: str, *, retries: bool = True) -> tuple[fs.S3FileSystem, str]:
    """The pyarrow client of s3://bucket/key, and the path in it; with retries of its own or not."""
    from fsspec.asyn import sync

    name = _name(location)
    bucket = name.partition("/")[0]
    with answers_of(location):
        botocore = client(location)
        meta = botocore.s3.meta
        if botocore.anon:
            credentials = ("", "", "")
        else:
            found = sync(botocore.loop, botocore.session.get_credentials)
            if found is None:
                from botocore.exceptions import NoCredentialsError

                raise NoCredentialsError
            # Each time anew: those of a role are renewed before they expire.
            credentials = tuple(sync(botocore.loop, found.get_frozen_credentials))[:3]
        return _arrow(bucket, meta.endpoint_url, meta.region_name, credentials, retries), name


@functools.lru_cache(maxsize=64)
def _arrow(
    bucket: str,
    endpoint: str,
    region: str | None,
    credentials: tuple[str, str, str | None],
    retries: bool,
) -> fs.S3FileSystem:
    key, secret, token = credentials
    addressing = _settings().get("addressing", "auto")
    of_aws = re.fullmatch(r"https://s3[.-]([a-z0-9-]+\.)?amazonaws\.com(\.cn)?", endpoint)
    if of_aws:
        region = _settings().get("region") or _region_of(bucket)
        suffix = of_aws[2] or ""
        override = f"https://s3.{region}.amazonaws.com{suffix}" if addressing == "path" else None
    else:
        override = endpoint
    return fs.S3FileSystem(
        anonymous=not key,
        access_key=key or None,
        secret_key=secret or None,
        session_token=token or None,
        region="us-east-1" if region in (None, "aws-global") else region,
        endpoint_override=override,  # with one, addresses are path-style unless forced
        force_virtual_addressing=addressing == "virtual",
        request_timeout=_READ_TIMEOUT_S,
        connect_timeout=_CONNECT_TIMEOUT_S,
        tls_ca_file_path=os.environ.get("AWS_CA_BUNDLE"),  # botocore reads it by itself
        # Never AwsStandardS3RetryStrategy: Arrow does not report successes to the SDK, so that a
        # client gives up for good after its hundredth retry. Here attempts do not count the first.
        retry_strategy=fs.AwsDefaultS3RetryStrategy(max_attempts=attempts() - 1 if retries else 0),
    )


@functools.cache
def _region_of(bucket: str) -> str:
    return str(fs.resolve_s3_region(bucket))


def read(location: str) -> bytes:
    """Content of an object by one request, so never parts of two versions.

    Raises:
        FileNotFoundError: There is no such object.
    """
    once = client(location, retries=False)  # botocore would not repeat a body that breaks off
    return retried(lambda: once.cat_file(location, max_concurrency=1), location)  # type: ignore[no-any-return]


def open_input(location: str) -> pa.NativeFile:
    """Open an object for random access with retries of every read.

    Raises:
        FileNotFoundError: There is no such object.
    """
    return pa.PythonFile(_RetriedInput(location), mode="r")


class _RetriedInput:
    """An object as a file for pyarrow, which reads from several threads but one at a time."""

    def __init__(self, location: str) -> None:
        filesystem, name = arrow_filesystem(location, retries=False)
        self._location = location
        self._file = retried(lambda: filesystem.open_input_file(name), location)
        self._slice = current_slice()  # Arrow reads ahead in threads of its own
        self._position = 0
        self._size: int = self._file.size()
        self.close, self.size = self._file.close, self._file.size
        self.readable, self.seekable = self._file.readable, self._file.seekable

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def read_buffer(self, nbytes: int | None = None) -> pa.Buffer:
        """The next bytes, without a copy."""
        rest = self._size - self._position
        wanted = rest if nbytes is None or nbytes < 0 else min(nbytes, rest)
        if wanted <= 0:
            return pa.py_buffer(b"")
        start = self._position
        with in_slice(self._slice):
            found = retried(lambda: self._read(start, wanted), self._location)
        self._position = start + wanted
        return found

    def read(self, nbytes: int | None = None) -> bytes:
        return self.read_buffer(nbytes).to_pybytes()  # type: ignore[no-any-return]

    def _read(self, start: int, wanted: int) -> pa.Buffer:
        content = self._file.read_at(wanted, start)
        if len(content) < wanted:
            raise ConnectionError(f"{len(content)} of {wanted} bytes received")
        return pa.py_buffer(content)


# -------------------------------------------------------------------------------------- writing


def exists(location: str) -> bool:
    """Whether there is an object."""
    with answers_of(location):
        try:
            return bool(client(location).info(location)["type"] == "file")
        except FileNotFoundError:
            return False


def put(location: str, content: bytes | pa.Buffer) -> None:
    """Write or replace an object atomically, in one request.

    Raises:
        FileNotFoundError: There is no such bucket.
    """
    with answers_of(location):
        _put(client(location), location, content, mode="overwrite")


def put_if_absent(location: str, content: bytes) -> bool:
    """Write an object unless the key is taken.

    Returns whether ours was written, also where the store's response was lost.

    Raises:
        OSError: It is unknown whether it was written.
    """
    once = client(location, retries=False)  # each attempt matters here
    lost: Exception | None = None
    for attempt in range(1, attempts() + 1):
        if lost:
            wait_s = backoff_s(attempt - 1)
            log_retry(location, reason(lost), attempt - 1, wait_s)
            time.sleep(wait_s)
        try:
            _put(once, location, content, mode="create")
        except Exception as error:
            if isinstance(error, FileExistsError) or http_status(error) == 412:
                # After a lost response, the object may be ours. Contents that matter carry a
                # unique id, so equal bytes are ours.
                return lost is not None and _content(location) == content
            if lost is None and is_refusal(error):
                raise answer_error(error, location) or error from error
            if not is_passing(error):
                raise error if isinstance(error, OSError) else OSError(str(error)) from error
            lost = error
        else:
            return True
    raise OSError(f"{reason(lost)}, {attempts()} times in a row") from lost  # type: ignore[arg-type]


def _content(location: str) -> bytes:
    try:
        return read(location)
    except PipelineError as error:
        raise OSError(str(error)) from error


def _put(filesystem: Any, location: str, content: bytes | pa.Buffer, mode: str) -> None:
    body = content if isinstance(content, bytes) else content.to_pybytes()
    filesystem.pipe_file(location, body, mode=mode, chunksize=_LARGEST_PUT)


def _name(location: str) -> str:
    return location.removeprefix("s3://")
