"""Leases: one holder at a time, whatever stands still, dies, or has a clock of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import LeaseHeld, TransientError
from pipeline.lake import lease
from pipeline.lake.lease import Claim, Lease, is_free, is_held, take
from pipeline.storage import Store

DS = "2026-01-31"


@pytest.fixture
def lake(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


@pytest.fixture
def another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims of this process seem to come from a machine whose processes nobody here can ask."""
    boots = (f"boot {number}" for number in range(100))
    monkeypatch.setattr(lease, "_boot", lambda: next(boots))


@contextmanager
def held(lake: Store, holder: str, seconds: float = 60, **named: Any) -> Iterator[Lease]:
    taken = take(lake, DS, holder, seconds=seconds, **named)
    try:
        yield taken
    finally:
        taken.release()


def newest(lake: Store) -> Claim:
    seen = lease._newest(lake, DS)
    assert seen is not None
    assert seen.claim is not None
    return seen.claim


def stand_still(stopped: Lease) -> None:
    """The holder does nothing any more, without giving the lease back."""
    stopped._stop.set()
    stopped._thread.join()


# ------------------------------------------------------------------------------- one at a time


def test_second_start_is_told_who_works(lake: Store) -> None:
    with held(lake, "run a"):
        assert is_held(lake, DS)
        assert not is_free(lake, DS)
        with pytest.raises(LeaseHeld) as refused:
            take(lake, DS, "run b", seconds=60)
        assert f"run a (process {os.getpid()} on " in str(refused.value)
        assert len(str(refused.value).splitlines()) == 1
        take(lake, "2026-02-01", "run b", seconds=60).release()  # another ds is another matter
    assert is_free(lake, DS)
    with held(lake, "run b", on_wait=pytest.fail):
        assert newest(lake).holder == "run b"


def test_one_of_many_starts_gets_it(lake: Store) -> None:
    start = threading.Barrier(8)

    def one(number: int) -> Lease | None:
        start.wait()
        try:
            return take(lake, DS, f"run {number}", seconds=60)
        except LeaseHeld:
            return None

    with ThreadPoolExecutor(8) as threads:
        taken = [found for found in threads.map(one, range(8)) if found]
    assert len(taken) == 1
    taken[0].confirm()
    taken[0].release()


def test_it_is_renewed_while_somebody_works(lake: Store, another_machine: None) -> None:
    waits: list[str] = []
    with held(lake, "run a", seconds=0.6) as mine:
        time.sleep(1.5)  # longer than it lasts
        with pytest.raises(LeaseHeld, match="run a"):
            take(lake, DS, "run b", seconds=60, on_wait=waits.append)
        mine.confirm()
    assert len(waits) == 1
    assert "run a" in waits[0]
    assert "0.6 s at most" in waits[0]


# --------------------------------------------------------------------------- holders that die


HOLD = """
import sys, time
from pipeline.lake.lease import take
from pipeline.storage import Store
take(Store(sys.argv[1]), sys.argv[2], "run killed", seconds=60)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def killed_holder(lake: Store) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", HOLD, lake.url, DS]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert not is_free(lake, DS)
    process.send_signal(signal.SIGKILL)
    return process


@pytest.mark.skipif(not lease._boot(), reason="needs Linux's /proc")
def test_nobody_waits_for_a_process_of_this_machine_that_was_killed(
    lake: Store, killed_holder: subprocess.Popen[str]
) -> None:
    os.waitid(os.P_PID, killed_holder.pid, os.WEXITED | os.WNOWAIT)  # dead, its parent not told
    assert is_free(lake, DS)
    killed_holder.wait()
    with held(lake, "run again", on_wait=pytest.fail):
        assert newest(lake).holder == "run again"


@pytest.mark.skipif(not lease._boot(), reason="needs Linux's /proc")
def test_a_process_that_was_given_the_id_of_the_dead_one_is_not_taken_for_it(lake: Store) -> None:
    take(lake, DS, "run killed", seconds=60)._stop.set()
    dead = newest(lake).model_copy(update={"born": "1"})  # this process's id, another's birth
    lake.write_json(f"leases/{DS}/1.json", dead.model_dump(mode="json"))
    with held(lake, "run again", on_wait=pytest.fail):
        assert newest(lake).holder == "run again"


def test_a_holder_on_a_machine_that_is_gone_is_waited_for(
    lake: Store, another_machine: None
) -> None:
    stand_still(take(lake, DS, "run killed", seconds=0.5))
    assert not is_free(lake, DS)  # nobody knows
    assert not is_held(lake, DS)
    waits: list[str] = []
    began = time.monotonic()
    with held(lake, "run again", on_wait=waits.append) as mine:
        assert time.monotonic() - began >= 0.5  # never before it had its time
        assert newest(lake).holder == "run again"
        mine.confirm()
    assert len(waits) == 1
    assert "run killed" in waits[0]


def test_only_one_of_many_follows_a_dead_holder(lake: Store, another_machine: None) -> None:
    stand_still(take(lake, DS, "run killed", seconds=0.5))

    def one(number: int) -> Lease | None:
        try:
            return take(lake, DS, f"run {number}", seconds=2)
        except LeaseHeld:
            return None

    with ThreadPoolExecutor(4) as threads:
        taken = [found for found in threads.map(one, range(4)) if found]
    assert len(taken) == 1
    taken[0].confirm()
    taken[0].release()


def test_a_holder_given_back_while_somebody_waits(lake: Store, another_machine: None) -> None:
    first = take(lake, DS, "run a", seconds=30)
    stand_still(first)
    threading.Timer(0.5, first.release).start()
    # Half a minute is not up: it was given back.
    with held(lake, "run b", on_wait=lambda _: None):
        assert newest(lake).holder == "run b"


# ---------------------------------------------------------------------- holders that stood still


def test_who_stood_still_for_too_long_is_told(lake: Store, another_machine: None) -> None:
    first = take(lake, DS, "run a", seconds=0.5)
    stand_still(first)
    with held(lake, "run b") as second:
        with pytest.raises(LeaseHeld, match="lease of run a went to run b"):
            first.confirm()
        first.release()  # must not take it from its new holder
        second.confirm()
        assert newest(lake).holder == "run b"
        assert not newest(lake).released


def test_who_goes_on_after_it_stood_still_is_told_without_asking(
    lake: Store, another_machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    with held(lake, "run a", seconds=1.2, on_lost=told.append) as first:
        real = first._renew_once
        stands = threading.Event()
        monkeypatch.setattr(first, "_renew_once", lambda: stands.is_set() and real())
        with held(lake, "run b"):
            assert told == []
            stands.set()
            deadline = time.monotonic() + 30
            while not told and time.monotonic() < deadline:
                time.sleep(0.05)
    assert len(told) == 1
    assert "went to run b" in told[0]


def test_who_stood_still_and_was_not_missed_goes_on(lake: Store, another_machine: None) -> None:
    first = take(lake, DS, "run a", seconds=0.5)
    stand_still(first)
    time.sleep(1)
    first.confirm()
    first.release()


@pytest.mark.skipif(not lease._boot(), reason="needs Linux's /proc")
def test_a_process_of_this_machine_that_stands_still_is_followed(lake: Store) -> None:
    first = take(lake, DS, "run a", seconds=0.5)
    with pytest.raises(LeaseHeld):
        take(lake, DS, "run b", seconds=60)
    stand_still(first)
    time.sleep(0.6)
    with held(lake, "run b", on_wait=pytest.fail), pytest.raises(LeaseHeld):
        first.confirm()


# --------------------------------------------------------------------------------- clocks, storage


def backdate(lake: Store, seconds: float) -> None:
    """The newest claim is as old as this by the clock of the store."""
    seen = lease._newest(lake, DS)
    assert seen is not None
    path = lake.locate(f"leases/{DS}/{seen.number}.json")
    os.utime(path, (time.time() - seconds,) * 2)


@pytest.mark.parametrize("hours", [-30, 5, 1000])
def test_clocks_of_machines_that_differ_by_hours_end_no_lease(
    lake: Store, another_machine: None, hours: int
) -> None:
    # On a shared folder, times of files may be those of the machine that wrote them.
    with held(lake, "run a", seconds=1.2):
        backdate(lake, hours * 3600)
        with pytest.raises(LeaseHeld):
            take(lake, DS, "run b", seconds=60)


def test_claim_of_another_version_is_watched_too(lake: Store) -> None:
    lake.write_json(f"leases/{DS}/4.json", {"token": "?", "colour": "blue"})
    waits: list[str] = []
    with held(lake, "run a", seconds=0.5, on_wait=waits.append):
        assert [file.name for file in lake.list(f"leases/{DS}")] == ["5.json"]
    assert len(waits) == 1


def test_storage_that_does_not_answer(lake: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with held(lake, "run a") as mine:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "list", _fail)
            with pytest.raises(TransientError, match="does not answer; whether this run still"):
                mine.confirm()
            with pytest.raises(TransientError, match="does not answer; the lease on ds"):
                take(lake, DS, "run b", seconds=60)
        mine.confirm()


def test_storage_that_is_away_for_a_while_does_not_end_it(
    lake: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held(lake, "run a", seconds=1.2) as mine:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "list", _fail)
            time.sleep(0.3)
        before = newest(lake).renewals
        deadline = time.monotonic() + 30
        while newest(lake).renewals == before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert newest(lake).renewals > before
        mine.confirm()


def _fail(*_: object) -> Any:
    raise OSError("it does not answer")


def test_claims_do_not_pile_up(lake: Store) -> None:
    for number in range(5):
        with held(lake, f"run {number}"):
            pass
    assert [file.name for file in lake.list(f"leases/{DS}")] == ["5.json"]
