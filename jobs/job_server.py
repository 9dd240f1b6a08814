"""The job server of a Ray cluster: on its dashboard, reached over HTTP, at times away."""

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
_ANSWER_SECONDS = 120  # an upload of 64 MiB and its storing are one request
_AWAY_SECONDS = 300  # a head that comes back on another node takes minutes
# A job server looks after a job until a second after its end, by its id: a new job of the same id
# would be taken for the old one, and ended.
_SETTLE_SECONDS = 5
_LAST_LINES_SECONDS = 15


class JobServer:
    """The job server of a cluster.

    Args:
        address: URL of its dashboard; None takes it from the environment.

    Raises:
        ConfigError: There is no address, or it is none of a Ray dashboard, or Ray's client is not
            installed, or its token is refused.
        TransientError: It can't be reached.
    """

    def __init__(self, address: str | None) -> None:
        url = _checked_address(address)
        self.address = re.sub(r"//[^/@]*@", "//", url)  # for everybody to see
        # Ray would let its environment win over what was asked for, RAY_ADDRESS too.
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
        """Submit a job, in the place of an earlier one of this id that has ended.

        Returns:
            Characters that the log of this id already has: the earlier jobs'.

        Raises:
            LeaseHeld: A job of this id is at work, or somebody else was faster.
        """
        token = uuid.uuid4().hex  # tells our submission from another's, if its answer is lost
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
                try:
                    there = self._info(submission_id)
                except TransientError:
                    if isinstance(error, _Refused) or time.monotonic() > deadline:
                        raise error from None
                    time.sleep(_POLL_SECONDS)
                    continue
                if there is not None and (there.metadata or {}).get("token") == token:
                    return log_start
                if there is not None:
                    raise _at_work(submission_id, there) from None
                if isinstance(error, _Refused) or time.monotonic() > deadline:
                    raise
                time.sleep(_POLL_SECONDS)

    def _make_way(self, submission_id: str) -> int:
        """Take a job that has ended out of the list; its log stays."""
        time.sleep(_SETTLE_SECONDS)
        length = 0
        with contextlib.suppress(_Refused), self._answers():  # the node that it was on may be gone
            length = len(self._client.get_job_logs(submission_id))
        with contextlib.suppress(_Refused), self._answers():  # somebody else may be faster
            self._client.delete_job(submission_id)
        return length

    def wait(self, submission_id: str, log: IO[str] | None, log_start: int) -> JobDetails:
        """Wait for a job's end; a dashboard may be away for some minutes.

        Args:
            submission_id: The job's.
            log: Where its log goes.
            log_start: Characters of the log that are of earlier jobs.

        Raises:
            TransientError: The cluster has gone, or knows the job no more.
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
                        f"the cluster at {self.address} knows {submission_id} no more: its head "
                        "was started anew, or somebody deleted the job. Submit again: the run goes "
                        "on where it stopped"
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
        """Turn every way in which a cluster does not answer into one line."""
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
                f"{self.address} answers, but not as Ray's dashboard does; its port is 8265 unless "
                "somebody chose another"
            ) from None
        except (requests.RequestException, OSError) as error:
            raise TransientError(
                f"the cluster at {self.address} cannot be reached: {first_line(error)}; check the "
                "address, and that its dashboard runs"
            ) from None
        except RuntimeError as error:  # Ray's, for every other status
            raise _refusal(self.address, error) from None


class _Refused(TransientError):
    """The job server answers with an error.

    Attributes:
        status: Of HTTP.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def _refusal(address: str, error: RuntimeError) -> PipelineError:
    """What an error of Ray's client means, which has the HTTP status in its text."""
    text = str(error).strip()
    found = re.search(r"status code (\d+)", text)
    if found is None:  # of its look at the version: too old, or no Ray
        return ConfigError(
            f"{address} is no dashboard of a Ray that jobs can be submitted to: {first_line(text)}"
        )
    status = int(found.group(1))
    last = text.splitlines()[-1].strip()  # of a traceback, what went wrong
    if status in (502, 503, 504) or "No available agent" in text:  # a proxy, or a young head
        return TransientError(f"the head of the cluster at {address} is not ready: {last}")
    return _Refused(f"the cluster at {address} refuses: {last}", status)


def _at_work(submission_id: str, info: JobDetails) -> LeaseHeld:
    return LeaseHeld(
        f"{submission_id} is on this cluster already, {info.status.value}; wait for it "
        f"(ray job logs --follow {submission_id}), stop it (ray job stop {submission_id}), or give "
        "another pipeline another --name"
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
    except ValueError:  # a port that is no number
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
            """Ray's, which would wait for an answer for ever."""

            def _do_request(self, *given: Any, **options: Any) -> Any:
                limits = (_CONNECT_SECONDS, _ANSWER_SECONDS)
                return super()._do_request(*given, **options, timeout=limits)

        for handler in logging.getLogger("ray").handlers:
            handler.setLevel(logging.WARNING)  # what it uploads, and when it disconnects
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
    """Shows a job's log as it grows, whatever becomes of the connection."""

    def __init__(
        self, client: JobSubmissionClient, submission_id: str, out: IO[str], start: int
    ) -> None:
        super().__init__(name="log of the job", daemon=True)
        self._client, self._id, self._out = client, submission_id, out
        self._shown = start
        self._ended = threading.Event()

    def run(self) -> None:
        """Connect again until the job has ended and its log was shown to the end."""
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
        """Show nothing more."""
        self._shown = sys.maxsize

    def finish(self) -> None:
        """The job has ended: wait for the last lines."""
        self._ended.set()
        self.join(_LAST_LINES_SECONDS)


def first_line(error: object) -> str:
    """What an error says first, without the sentence's end."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else ""
