"""Leases: one attempt at a time works on a ds; the next one follows when it dies.

A lease is the newest of the numbered claims in ``leases/<ds>/``. It belongs to the process that
created it by put-if-absent, and that renews it by writing it again. No compare-and-swap is needed,
and clocks of different machines are never compared (decision 0014).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from pipeline.artifacts.records import Record, utc_now
from pipeline.errors import ConfigError, LeaseHeld, PipelineError, TransientError
from pipeline.storage import S3_SCHEME, Store, why

log = logging.getLogger(__name__)

_FOLDER = "leases"
# Renewals in the time that a lease lasts: so many must fail in a row before it is taken over, and
# who waits for a sign of life waits for a twelfth of that time.
_RENEWALS = 12


class Claim(Record):
    """Content of ``leases/<ds>/<n>.json``."""

    token: str
    holder: str
    host: str
    process: int
    born: str  # start time of that process, since ids are reused
    boot: str  # boot of the machine, where process ids and the monotonic clock hold; empty: unknown
    since: str  # time in UTC of the claim, by that machine's clock; for people only
    seconds: float  # seconds without renewal after which it ends
    renewed: float  # monotonic clock of the boot at the last renewal, in seconds
    renewals: int
    released: bool  # whether the holder gave it back


@dataclass(frozen=True)
class _Seen:
    """The newest claim at the time of a look; ``claim`` is None where it cannot be read."""

    number: int
    content: bytes
    claim: Claim | None


class Lease:
    """A lease of this process, renewed in the background until it is released."""

    def __init__(
        self, lake: Store, ds: str, number: int, claim: Claim, on_lost: Callable[[str], None]
    ) -> None:
        self._lake, self._ds, self._number, self._claim = lake, ds, number, claim
        self._on_lost = on_lost
        self._lock = threading.Lock()  # over a renewal: look, then write
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def confirm(self) -> None:
        """Renew the lease, and check that it is still ours.

        Raises:
            LeaseHeld: It was taken over, because this process was suspended or cut off.
            TransientError: The storage does not answer.
        """
        try:
            self._renew_once()
            self._require_ours()  # another process may have been about to create the next number
        except OSError as error:
            raise TransientError(
                f"{self._lake.locate(_folder(self._ds))}: {why(error)}; whether this run still "
                "has the lease is not known, so that it stops. Run the same run id again"
            ) from error

    def release(self) -> None:
        """Give the lease back, so that the next start need not wait."""
        self._stop.set()
        self._thread.join(timeout=10)  # a storage that hangs must not keep the process
        if self._lock.acquire(timeout=1):
            with contextlib.suppress(OSError, PipelineError):  # then others wait for its end
                self._require_ours()
                self._write(released=True)
            self._lock.release()

    def _renew(self) -> None:
        while not self._stop.wait(self._claim.seconds / _RENEWALS):
            try:
                self._renew_once()
            except LeaseHeld as error:
                log.warning("%s", error)
                self._on_lost(str(error))
                return
            except (OSError, PipelineError) as error:
                log.warning("lease on ds %s was not renewed: %s", self._ds, why(error))

    def _renew_once(self) -> None:
        with self._lock:
            self._require_ours()
            self._write(released=False)

    def _require_ours(self) -> None:
        seen = _newest(self._lake, self._ds)
        if seen is None or seen.claim is None or seen.claim.token != self._claim.token:
            by = _described(seen) if seen else "somebody who removed it"
            raise LeaseHeld(
                f"ds {self._ds}: the lease of {self._claim.holder} went to {by}, because it was "
                f"not renewed for {self._claim.seconds:g} s; this one stops and publishes nothing"
            )

    def _write(self, *, released: bool) -> None:
        self._claim = self._claim.model_copy(
            update={
                "renewed": time.monotonic(),
                "renewals": self._claim.renewals + 1,
                "released": released,
            }
        )
        self._lake.write_json(_path(self._ds, self._number), self._claim.model_dump(mode="json"))


def take(
    lake: Store,
    ds: str,
    holder: str,
    *,
    seconds: float,
    on_wait: Callable[[str], None] = lambda _: None,
    on_lost: Callable[[str], None] = lambda _: None,
) -> Lease:
    """Get the lease on a ds, waiting for one whose holder may be dead.

    The lease ends after ``seconds`` without renewal. ``holder`` is for people, such as "run
    2026-01-31-0123abcd". ``on_lost`` is called from another thread when the lease was taken over.

    Raises:
        LeaseHeld: Another attempt works on the ds; known at once on the same machine, else within
            a twelfth of the lease's duration.
        ConfigError: The output may not be written to.
        TransientError: The storage does not answer.
    """
    claim = Claim(
        token=uuid.uuid4().hex,
        holder=holder,
        host=socket.gethostname(),
        process=os.getpid(),
        born=_born(os.getpid()),
        boot=_boot(),
        since=utc_now(),
        seconds=seconds,
        renewed=time.monotonic(),
        renewals=0,
        released=False,
    )
    try:
        while True:
            seen = _newest(lake, ds)
            if seen and not _is_over(lake, ds, seen):
                _watch(lake, ds, seen, seconds, on_wait)
            number = seen.number + 1 if seen else 1
            claim = claim.model_copy(update={"renewed": time.monotonic()})
            # Where another start was faster, the next round meets its claim.
            if lake.create_json(_path(ds, number), claim.model_dump(mode="json")) or (
                (now := _newest(lake, ds)) and now.claim and now.claim.token == claim.token
            ):
                lease = Lease(lake, ds, number, claim, on_lost)
                break
    except PermissionError as error:  # of a folder: it will be refused the next time, too
        raise ConfigError(
            f"{lake.locate(_folder(ds))}: {why(error)}; whoever works on a ds needs the right to "
            "write below output"
        ) from error
    except OSError as error:
        raise TransientError(
            f"{lake.locate(_folder(ds))}: {why(error)}; the lease on ds {ds} cannot be had now. "
            "Run the same run id again"
        ) from error
    with contextlib.suppress(OSError, PipelineError):  # without the right to delete, they stay
        lake.delete([_path(ds, old) for old in _numbers(lake, ds) if old < number])
    return lease


def is_free(lake: Store, ds: str) -> bool:
    """Whether a ds certainly has no holder."""
    seen = _newest(lake, ds)
    with contextlib.suppress(LeaseHeld):
        return seen is None or _is_over(lake, ds, seen)
    return False


def is_held(lake: Store, ds: str) -> bool:
    """Whether a ds certainly has a holder; ``take`` finds out in other cases."""
    seen = _newest(lake, ds)
    try:
        if seen is not None:
            _is_over(lake, ds, seen)
    except LeaseHeld:
        return True
    return False


def _is_over(lake: Store, ds: str, seen: _Seen) -> bool:
    """Whether a claim has certainly ended.

    Raises:
        LeaseHeld: It certainly has not.
    """
    claim = seen.claim
    if claim is None:
        return False
    if claim.released:
        return True
    if claim.boot and claim.boot == _boot():  # one machine: its processes and its clock are ours
        if time.monotonic() - claim.renewed > claim.seconds or not _lives(claim):
            return True
        raise _held(ds, seen)
    # Two times by the clock of the object store, whose nodes may differ a little. Files in folders
    # that machines share may carry the machines' own times, which say nothing.
    of_store = lake.url.startswith(S3_SCHEME)
    return of_store and _age(lake, ds, seen.number) > 2 * claim.seconds


def _watch(
    lake: Store, ds: str, seen: _Seen, seconds: float, on_wait: Callable[[str], None]
) -> None:
    """Watch a claim until it was not renewed for its duration, by our own clock.

    Raises:
        LeaseHeld: It was renewed, or another attempt took it.
    """
    lasts = seen.claim.seconds if seen.claim else seconds
    on_wait(
        f"ds {ds} may still be worked on by {_described(seen)}: waiting for a sign of life, "
        f"{lasts:g} s at most"
    )
    # A number of looks, not a deadline: a machine suspended meanwhile looks as often.
    for _ in range(2 * _RENEWALS):
        time.sleep(lasts / _RENEWALS / 2)
        now = _newest(lake, ds)
        if now is None or (now.claim and now.claim.released and now.number == seen.number):
            return
        if now != seen:
            raise _held(ds, now)


def _held(ds: str, seen: _Seen) -> LeaseHeld:
    return LeaseHeld(
        f"ds {ds} is being worked on by {_described(seen)}; this start did nothing. Wait for it, "
        "or stop it and start again"
    )


def _described(seen: _Seen) -> str:
    if seen.claim is None:
        return "somebody whose claim cannot be read"
    claim = seen.claim
    return f"{claim.holder} (process {claim.process} on {claim.host}, since {claim.since})"


def _newest(lake: Store, ds: str) -> _Seen | None:
    numbers = _numbers(lake, ds)
    if not numbers:
        return None
    try:
        content = lake.read_bytes(_path(ds, max(numbers)))
    except FileNotFoundError:  # the next holder removed it after we listed
        return _newest(lake, ds)
    try:
        claim = Claim.model_validate_json(content)
    except ValidationError:  # of another version
        claim = None
    return _Seen(max(numbers), content, claim)


def _numbers(lake: Store, ds: str) -> list[int]:
    matches = (re.fullmatch(r"(\d+)\.json", file.name) for file in lake.list(_folder(ds)))
    return [int(match[1]) for match in matches if match]


def _age(lake: Store, ds: str, number: int) -> float:
    """Seconds since a claim was written, by the clock of the store."""
    written = {file.name: file.modified for file in lake.list(_folder(ds))}
    return store_time(lake) - written.get(f"{number}.json", float("inf"))


def store_time(lake: Store) -> float:
    """Time by the clock of the store, in seconds since 1970."""
    lake.write_bytes(f"{_FOLDER}/clock", b"")
    return next(file.modified for file in lake.list(_FOLDER) if file.name == "clock")


def _folder(ds: str) -> str:
    return f"{_FOLDER}/{ds}"


def _path(ds: str, number: int) -> str:
    return f"{_folder(ds)}/{number}.json"


@functools.cache
def _boot() -> str:
    """Ids of the kernel's boot and of the namespace of process ids; empty where unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _lives(claim: Claim) -> bool:
    """Whether the process of a claim of this machine lives."""
    try:
        os.kill(claim.process, 0)
    except PermissionError:
        return True  # another user's
    except OSError:
        return False
    return _born(claim.process) == claim.born


def _born(process: int) -> str:
    """When a process started, in ticks since the boot; empty for none, or one that is dead."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text("utf-8")
    except OSError:
        return ""
    state, *fields = stat.rpartition(")")[2].split()
    # A zombie is dead, too.
    return "" if state == "Z" else fields[18]
