"""Client of the job server on a Ray cluster's dashboard; survives its outages."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pipeline.errors import ConfigError, LeaseHeld, PipelineError, TransientError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

_POLL_SECONDS = 2
_CONNECT_SECONDS = 10
_ANSWER_SECONDS = 120  # one request uploads and stores up to 64 MiB
_AWAY_SECONDS = 300  # a head that restarts on another node takes minutes
# A job server monitors a job by its id until a second after its end; it would take a new job of
# the same id for the old one, and end it.
_SETTLE_SECONDS = 5
_LAST_LINES_SECONDS = 15


class JobServer:
    """The job server of a cluster.

    ``address`` is the URL of its dashboard; None takes it from the environment.

    Raises:
        ConfigError: There is no address, it is not that of a Ray dashboard, Ray's client is not
            installed, or the token is refused.
        TransientError: It can't be reached.
    """

    def __init__(self, address: str | None) -> None:
        url = _checked_address(address)
        self.address = re.sub(r"//[^/@]*@", "//", url)  # without a password
        # Ray prefers its environment, also RAY_ADDRESS, to the given address.
        os.environ["RAY_API_SERVER_ADDRESS"] = url
        with self._answers():
            self._client = _client_of(url)

    def submit(
        self,
        submission_id: str,
        command: str,
        runtime_env: dict[str, Any],
        metadata: dict[str, str],
    ) -> int:
        """Submit a job, replacing an earlier one of this id that has ended.

        Returns the length of the log of earlier jobs of this id, in characters.

        Raises:
            LeaseHeld: A job of this id is running, or was submitted at the same time.
        """
        token = uuid.uuid4().hex  # identifies our submission if its answer is lost
        log_start = 0
        before = self._info(submission_id)
        if before is not None:
            if not before.status.is_terminal():
                raise _at_work(submission_id, before)
            log_start = self._make_way(submission_id)
        deadline = time.monotonic() + _AWAY_SECONDS
        while True:
            try:
                with self._answers():
                    self._client.submit_job(
                        entrypoint=command,
                        submission_id=submission_id,
                        runtime_env=runtime_env,
                        metadata={**metadata, "token": token},
                        entrypoint_num_cpus=0,
                    )
                return log_start
            except TransientError as error:
                there = None
                with contextlib.suppress(TransientError):
                    there = self._info(submission_id)
                if there is not None and (there.metadata or {}).get("token") == token:
                    return log_start
                if there is not None:
                    raise _at_work(submission_id, there) from None
                if isinstance(error, _Refused) or time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)

    def _make_way(self, submission_id: str) -> int:
        """Delete a job that has ended; returns the length of its log, which stays."""
        time.sleep(_SETTLE_SECONDS)
        length = 0
        with contextlib.suppress(_Refused), self._answers():  # its node may be gone
            length = len(self._client.get_job_logs(submission_id))
        with contextlib.suppress(_Refused), self._answers():  # deleted meanwhile
            self._client.delete_job(submission_id)
        return length

    def wait(self, submission_id: str, log: IO[str] | None, log_start: int) -> JobDetails:
        """Wait for the end of a job; the dashboard may be unreachable for some minutes.

        ``log`` receives the job's log. Its first ``log_start`` characters, of earlier jobs, are
        left out.

        Raises:
            TransientError: The cluster is gone, or no longer knows the job.
        """
        tail = _Tail(self._client, submission_id, log, log_start) if log else None
        if tail:
            tail.start()
        try:
            info = self._end_of(submission_id)
        except KeyboardInterrupt:
            if tail:
                tail.leave()
            raise
        if tail:
            tail.finish()
        return info

    def _end_of(self, submission_id: str) -> JobDetails:
        answered = time.monotonic()
        while True:
            try:
                info = self._info(submission_id)
            except TransientError:
                if time.monotonic() - answered > _AWAY_SECONDS:
                    raise
            else:
                answered = time.monotonic()
                if info is None:
                    raise TransientError(
                        f"the cluster at {self.address} no longer knows {submission_id}: its head "
                        "was restarted, or the job was deleted. Submit again to resume the run"
                    )
                if info.status.is_terminal():
                    return info
            time.sleep(_POLL_SECONDS)

    def _info(self, submission_id: str) -> JobDetails | None:
        try:
            with self._answers():
                return self._client.get_job_info(submission_id)
        except _Refused as error:
            if error.status == 404:
                return None
            raise

    @contextlib.contextmanager
    def _answers(self) -> Iterator[None]:
        """Turn errors of Ray's client into ours."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            reason = first_line(error).partition(". ")[0]
            raise ConfigError(
                f"the cluster at {self.address} refuses: {reason}. Set "
                "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's "
                "token"
            ) from None
        except (requests.exceptions.JSONDecodeError, requests.exceptions.HTTPError, KeyError):
            raise ConfigError(
                f"{self.address} answers, but is not a Ray dashboard; its default port is 8265"
            ) from None
        except (requests.RequestException, OSError) as error:
            raise TransientError(
                f"the cluster at {self.address} cannot be reached: {first_line(error)}; check the "
                "address, and that its dashboard runs"
            ) from None
        except RuntimeError as error:  # for every other status
            raise _refusal(self.address, error) from None


class _Refused(TransientError):
    """The job server answered with an error; its HTTP status is ``status``."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def _refusal(address: str, error: RuntimeError) -> PipelineError:
    """Our error for one of Ray's client, which has the HTTP status only in its text."""
    text = str(error).strip()
    found = re.search(r"status code (\d+)", text)
    if found is None:  # of the check of its version: too old, or not Ray
        return ConfigError(
            f"{address} is not a Ray dashboard that accepts jobs: {first_line(text)}"
        )
    status = int(found.group(1))
    last = text.splitlines()[-1].strip()  # the error below a traceback
    # A proxy, or a head that is starting.
    if status in (502, 503, 504) or "No available agent" in text:
        return TransientError(f"the head of the cluster at {address} is not ready: {last}")
    return _Refused(f"the cluster at {address} refuses: {last}", status)


def _at_work(submission_id: str, info: JobDetails) -> LeaseHeld:
    return LeaseHeld(
        f"{submission_id} is on this cluster already, {info.status.value}; wait for it "
        f"(ray job logs --follow {submission_id}), stop it (ray job stop {submission_id}), or use "
        "another --name for another pipeline"
    )


def _checked_address(address: str | None) -> str:
    given = address or os.environ.get("RAY_ADDRESS", "")
    if not address and not given.startswith(("http://", "https://")):
        raise ConfigError(
            "no cluster is named; give --address http://HEAD:8265, or set RAY_API_SERVER_ADDRESS"
        )
    parts = urlsplit(given)
    try:
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is not a number
        right = False
    if not right:
        raise ConfigError(
            f"--address {given!r} must be the URL of the cluster's dashboard: http://HEAD:8265"
        )
    return given.rstrip("/")


def _client_of(address: str) -> JobSubmissionClient:
    try:
        from ray.job_submission import JobSubmissionClient

        class Client(JobSubmissionClient):
            """Ray's client, with limits on the time of a request."""

            def _do_request(self, *given: Any, **options: Any) -> Any:
                limits = (_CONNECT_SECONDS, _ANSWER_SECONDS)
                return super()._do_request(*given, **options, timeout=limits)

        for handler in logging.getLogger("ray").handlers:
            handler.setLevel(logging.WARNING)  # hide its messages on uploads
        headers = json.loads(os.environ.get("RAY_JOB_HEADERS") or "{}")
        return Client(address, headers=headers)
    except ImportError as error:
        missing = error
    except RuntimeError as error:
        if "ray[default]" not in str(error):
            raise
        missing = ImportError(error)
    except json.JSONDecodeError:
        raise ConfigError('RAY_JOB_HEADERS must be JSON, such as {"X-Name": "value"}') from None
    raise ConfigError(
        f"dec submit needs Ray's job client ({first_line(missing)}); "
        "pip install 'dec-pipeline[cluster]'"
    )


class _Tail(threading.Thread):
    """Prints a job's log as it grows; reconnects when the connection is lost."""

    def __init__(
        self, client: JobSubmissionClient, submission_id: str, out: IO[str], start: int
    ) -> None:
        super().__init__(name="log of the job", daemon=True)
        self._client, self._id, self._out = client, submission_id, out
        self._shown = start
        self._ended = threading.Event()

    def run(self) -> None:
        """Reconnect until the job has ended and its whole log is printed."""
        import aiohttp

        whole = False
        while not (whole and self._ended.is_set()):
            last = self._ended.is_set()
            try:
                asyncio.run(self._stream())
                whole = True
            except (RuntimeError, OSError, aiohttp.ClientError):
                if last:
                    return
            self._ended.wait(_POLL_SECONDS * 2)

    async def _stream(self) -> None:
        position = 0
        async for text in self._client.tail_job_logs(self._id):
            fresh = text[max(0, self._shown - position) :]
            position += len(text)
            self._shown = max(self._shown, position)
            print(fresh, end="", file=self._out, flush=True)

    def leave(self) -> None:
        """Print nothing more."""
        self._shown = sys.maxsize

    def finish(self) -> None:
        """Wait for the last lines, after the job has ended."""
        self._ended.set()
        self.join(_LAST_LINES_SECONDS)


def first_line(error: object) -> str:
    """First line of an error, without its final punctuation."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else ""
