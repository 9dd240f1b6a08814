"""Retries: how many, and of which failures."""

from __future__ import annotations

import logging

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, WorkerCrashedError

from pipeline.config import Execution
from pipeline.distributed import retries
from pipeline.distributed.retries import pause, with_retries
from pipeline.errors import ConfigError, InputError, OutOfMemory, StorageFull, TransientError


class Work:
    """Fails with these errors, one a call, then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.calls


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_FIRST_PAUSE_S", 0.001)


def test_each_retry_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    work = Work(TransientError("a"), OSError("b"))
    with caplog.at_level(logging.WARNING, retries.__name__):
        assert with_retries(Execution(retries=2), "work", work, memory="") == 3
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("work: retry 1 of 2 in ")
    assert first.endswith(": a")
    assert second.startswith("work: retry 2 of 2 in ")
    assert ": OSError: b" in second


def test_the_last_failure_is_raised() -> None:
    work = Work(*(TransientError(str(n)) for n in range(9)))
    with pytest.raises(TransientError, match="2"):
        with_retries(Execution(retries=2), "work", work, memory="")
    assert work.calls == 3


@pytest.mark.parametrize("error", [InputError("x"), StorageFull("x"), ZeroDivisionError("x")])
def test_what_stays_wrong_is_not_tried_again(error: Exception) -> None:
    work = Work(error)
    with pytest.raises(Exception, match="x"):
        with_retries(Execution(retries=2), "work", work, memory="")
    assert work.calls == 1


def test_failures_that_got_further_do_not_add_up() -> None:
    work = Work(*(TransientError(str(n)) for n in range(9)))
    settings = Execution(retries=1)
    assert with_retries(settings, "work", work, memory="", progress=lambda: work.calls) == 10


def test_too_little_memory_names_the_setting_in_the_end() -> None:
    work = Work(*(OutOfMemory("a worker ran out of memory") for _ in range(9)))
    with pytest.raises(ConfigError, match=r"after 1 retries. To need less, lower a\.b=2"):
        with_retries(Execution(retries=1), "work", work, memory="lower a.b=2")


@pytest.mark.parametrize(
    "lost",
    [
        ActorDiedError(),
        ActorUnavailableError("The actor is temporarily unavailable", None),
        WorkerCrashedError(),
    ],
)
def test_a_worker_that_stays_lost_may_have_lacked_memory(lost: Exception) -> None:
    """Killed by the kernel, it gives no reason; Ray may only know that it does not answer."""
    work = Work(*(lost for _ in range(9)))
    advice = r"If workers were killed for lack of memory, lower a\.b=2$"
    with pytest.raises(TransientError, match=advice):
        with_retries(Execution(retries=1), "work", work, memory="lower a.b=2")
    assert work.calls == 2


def test_pauses_grow_to_a_limit_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_FIRST_PAUSE_S", 1.0)
    for failures, longest in ((1, 1.0), (3, 4.0), (20, 30.0)):
        some = {pause(failures) for _ in range(20)}
        assert len(some) > 1
        assert longest / 2 <= min(some) <= max(some) <= longest
