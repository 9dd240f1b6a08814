"""Progress from a training's first worker to the driver, and stop requests the other way.

Both go through ``Board``, an actor on the driver's node: ``RankZero`` reports to it from the
worker, ``Watch`` polls it from the driver.
"""

from __future__ import annotations

import enum
import logging
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import ray

from pipeline.errors import Interrupted
from pipeline.progress import figures

if TYPE_CHECKING:  # the actor's process must start fast: every training waits for it
    from torch import Tensor

    from pipeline.distributed.checkpoints import Checkpoint
    from pipeline.distributed.growth import Growth
    from pipeline.engine import Context
    from pipeline.input.feed import WorkerRows
    from pipeline.model.training import TrainingRows

log = logging.getLogger(__name__)

_REPORT_SECONDS = 0.5  # often enough for a progress bar, far too rarely to cost anything
# Passes shorter than this are finished before a stop. Copying the state after each would be felt:
# that of the default network is 40 MB.
_SHORT_PASS_S = 1.0


class Trainable(Protocol):
    """``Pretraining`` or ``Refinement``."""

    passes_done: int

    def run(self, rows: TrainingRows) -> Iterator[Any]:
        """Train; yield a record (a dataclass with a ``number``) wherever the state can be saved."""

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed training needs."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from ``state``."""


class Request(enum.IntEnum):
    """What the driver asks of rank 0; the more urgent, the greater."""

    NOTHING = 0
    STOP_AT_RECORD = 1  # save the state of the next record and exit
    STOP_NOW = 2  # save the state of the last record and exit amid the pass, if the next is far


class Board:
    """Holds rank 0's progress for the driver, and the driver's request to rank 0."""

    def __init__(self) -> None:
        self._rows, self._note = 0, ""
        self._figures: dict[int, dict[str, float]] = {}
        self.reset()

    def reset(self) -> None:
        """An attempt has ended: no worker is running."""
        self._running, self._request = False, Request.NOTHING

    def record(self, number: int, values: dict[str, float], rows: int, note: str) -> None:
        """Store the figures of a record, and the progress so far."""
        self._figures[number] = values
        self.put(rows, note)

    def put(self, rows: int, note: str) -> Request:
        """Store rank 0's progress; returns the driver's request."""
        self._rows, self._note, self._running = rows, note, True
        return self._request

    def get(self, after: int) -> tuple[int, str, dict[int, dict[str, float]], bool]:
        """Rows, note, records after a number, and whether rank 0 runs and can hear a request."""
        newer = {number: values for number, values in self._figures.items() if number > after}
        return self._rows, self._note, newer, self._running

    def ask(self, request: Request) -> None:
        """Let rank 0 save its state and end the attempt with ``Interrupted``."""
        self._request = max(self._request, request)


class RankZero:
    """Reporting, checkpoints and stop requests in the first worker.

    ``history`` has the records by number; the training loop adds to it.
    """

    def __init__(
        self,
        board: Any,
        checkpoint: Checkpoint,
        checkpoint_seconds: float,
        trainable: Trainable,
        history: dict[int, dict[str, Any]],
    ) -> None:
        self._board, self._checkpoint = board, checkpoint
        self._checkpoint_seconds = checkpoint_seconds
        self._trainable, self._history = trainable, history
        self._rows, self._note = 0, ""
        self._reported_at = 0.0
        self._answer: Any = None
        self._request = Request.NOTHING
        self._saved_at = self._record_at = time.monotonic()
        # Of the last record: whether its state is unsaved, and a copy of that state.
        self._unsaved = False
        self._copy: dict[str, Tensor] | None = None

    def report(self, rows: int) -> None:
        """Report progress between two batches, and obey a request to stop now.

        Raises:
            Interrupted: The state of the last record is saved.
        """
        self._rows = rows
        if time.monotonic() - self._reported_at > _REPORT_SECONDS:
            if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
                self._request = ray.get(self._answer)
            self._answer = self._board.put.remote(rows, self._note)
            self._reported_at = time.monotonic()
        if self._request is Request.STOP_NOW and self._unsaved and self._copy is not None:
            self._save(self._copy)
        if self._request is Request.STOP_NOW and not self._unsaved:
            self._exit()

    def record(self, number: int, note: str) -> None:
        """Report a record; save its state if it is time, or keep a copy if the next one is far.

        Raises:
            Interrupted: The state is saved, and the board asked to stop.
        """
        values = figures(self._history[number])
        self._board.record.remote(number, values, self._rows, note)
        now = time.monotonic()
        is_far = now - self._record_at >= _SHORT_PASS_S
        self._note, self._record_at, self._unsaved, self._copy = note, now, True, None
        if self._request or now - self._saved_at >= self._checkpoint_seconds:
            self._save(self._trainable.state())
        elif is_far:
            log.info("keeps the state of record %d: %s", number, note)
            state = self._trainable.state()
            self._copy = {n: tensor.detach().to("cpu", copy=True) for n, tensor in state.items()}
        if self._request:
            self._exit()

    def _save(self, state: dict[str, Tensor]) -> None:
        self._checkpoint.save(state, self._history, complete=False)
        self._saved_at, self._unsaved, self._copy = time.monotonic(), False, None

    def _exit(self) -> None:
        log.info("stops as requested, after %d records", len(self._history))
        raise Interrupted(f"{self._checkpoint.folder}: stop requested")


class ReportingRows:
    """Training rows whose progress rank 0 reports."""

    def __init__(
        self, rows: WorkerRows, first: RankZero | None, workers: int, passes_done: int
    ) -> None:
        self.total_rows, self.features = rows.total_rows, rows.features
        self._rows, self._first, self._workers = rows, first, workers
        self._seen = passes_done * rows.total_rows

    def batches(self, pass_number: int, batch_rows: int, *, shuffled: bool) -> Iterator[Tensor]:
        """See ``TrainingRows``."""
        for batch in self._rows.batches(pass_number, batch_rows, shuffled=shuffled):
            yield batch
            self._seen += len(batch) * self._workers * shuffled
            if self._first:
                self._first.report(self._seen)


class Watch:
    """Forward what the board holds to the progress callback, and stop requests to the board."""

    def __init__(self, board: Any, stage: str, planned_rows: int, context: Context) -> None:
        self._board, self._stage, self._planned = board, stage, planned_rows
        self._progress, self._stop = context.progress, context.stop
        self.growth: Growth | None = None
        self._last = -1  # number of the last record that was forwarded
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(timeout=5)
        self._look()  # what came since the last look
        self._stop.heeded = False
        ray.kill(self._board)

    def forward(self, records: dict[int, dict[str, float]]) -> None:
        """Report the figures of those records that are new."""
        for number in sorted(records):
            if number > self._last:
                self._progress.measured(self._stage, number, records[number])
                self._last = number

    def _poll(self) -> None:
        forwarded = False
        while not self._done.wait(_REPORT_SECONDS):
            if self._stop.requested and not forwarded:
                log.info("%s: a stop was requested; rank 0 is told", self._stage)
                self._board.ask.remote(Request.STOP_NOW)
                forwarded = True
            self._look()

    def _look(self) -> None:
        try:
            rows, note, records, self._stop.heeded = ray.get(
                self._board.get.remote(self._last), timeout=5
            )
        except (ray.exceptions.RayError, TimeoutError):
            return
        try:
            if self._stop.heeded and self.growth and self.growth.pays(rows):
                self._board.ask.remote(Request.STOP_AT_RECORD)  # keep what the pass has learnt
                self.growth = None  # once is enough
        except Exception:  # polling must go on
            log.warning("no more workers are added to the training", exc_info=True)
            self.growth = None
        self.forward(records)
        self._progress.stage_advanced(min(rows, self._planned), self._planned, "rows", note)
