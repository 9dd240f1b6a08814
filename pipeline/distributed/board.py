"""Between the driver and a training's first worker: progress one way, the wish to stop the other.

Both talk to a board, an actor where the driver is. On one end ``Watch`` looks at it, on the other
``RankZero`` reports to it.
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

if TYPE_CHECKING:  # not for the actor, a process whose start every training waits for
    from torch import Tensor

    from pipeline.distributed.checkpoints import Checkpoint
    from pipeline.distributed.growth import Growth
    from pipeline.engine import Context
    from pipeline.input.feed import WorkerRows
    from pipeline.model.training import TrainingRows

log = logging.getLogger(__name__)

_REPORT_SECONDS = 0.5  # often enough for a progress bar, far too rarely to cost anything
# A pass that takes less is finished before a stop. Copying the state after each would be felt: the
# default network's is 40 MB.
_SHORT_PASS_S = 1.0


class Trainee(Protocol):
    """What is trained: ``Pretraining`` or ``Refinement``."""

    passes_done: int

    def run(self, rows: TrainingRows) -> Iterator[Any]:
        """Train, yielding a record (a dataclass with a ``number``) at each point of rest."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed training needs."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue where ``state`` was taken."""
        ...


class Ask(enum.IntEnum):
    """What the driver wants of rank 0; the more urgent, the greater."""

    NOTHING = 0
    STOP_AT_REST = 1  # save the next point of rest, and stop there
    STOP_NOW = 2  # save the last one, if the next is far, and stop amid the pass


class Board:
    """Where rank 0 leaves its progress for the driver, and the driver what it wants of rank 0."""

    def __init__(self) -> None:
        self._rows, self._note = 0, ""
        self._figures: dict[int, dict[str, float]] = {}
        self.reset()

    def reset(self) -> None:
        """Nobody is at work: an attempt has ended."""
        self._at_work, self._asked = False, Ask.NOTHING

    def record(self, number: int, values: dict[str, float], rows: int, note: str) -> None:
        """A record's figures, and the progress until there."""
        self._figures[number] = values
        self.put(rows, note)

    def put(self, rows: int, note: str) -> Ask:
        """Rank 0's progress; the answer is what it is asked for."""
        self._rows, self._note, self._at_work = rows, note, True
        return self._asked

    def get(self, after: int) -> tuple[int, str, dict[int, dict[str, float]], bool]:
        """Rows, note, records beyond a number, and whether rank 0 is there to hear of a stop."""
        newer = {number: values for number, values in self._figures.items() if number > after}
        return self._rows, self._note, newer, self._at_work

    def ask(self, what: Ask) -> None:
        """Let rank 0 save its state and end the attempt with ``Interrupted``."""
        self._asked = max(self._asked, what)


class RankZero:
    """What the first worker does besides learning: it reports, saves, and leaves when asked to.

    Args:
        board: Where it reports to.
        checkpoint: What it saves.
        checkpoint_seconds: Time between two of them.
        trainee: Whose state that is.
        history: Records by number; whoever trains adds to it.
    """

    def __init__(
        self,
        board: Any,
        checkpoint: Checkpoint,
        checkpoint_seconds: float,
        trainee: Trainee,
        history: dict[int, dict[str, Any]],
    ) -> None:
        self._board, self._checkpoint = board, checkpoint
        self._checkpoint_seconds = checkpoint_seconds
        self._trainee, self._history = trainee, history
        self._rows, self._note = 0, ""
        self._told_at = 0.0
        self._answer: Any = None
        self._asked = Ask.NOTHING
        self._saved_at = self._rested_at = time.monotonic()
        # Of the last point of rest: whether it is not saved, and a copy of its state.
        self._unsaved = False
        self._copy: dict[str, Tensor] | None = None

    def report(self, rows: int) -> None:
        """Tell the board, between two batches, and hear whether to stop now.

        Raises:
            Interrupted: The last point of rest is saved.
        """
        self._rows = rows
        if time.monotonic() - self._told_at > _REPORT_SECONDS:
            if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
                self._asked = ray.get(self._answer)
            self._answer = self._board.put.remote(rows, self._note)
            self._told_at = time.monotonic()
        if self._asked is Ask.STOP_NOW and self._unsaved and self._copy is not None:
            self._save(self._copy)
        if self._asked is Ask.STOP_NOW and not self._unsaved:
            self._leave()

    def rest(self, number: int, note: str) -> None:
        """A point of rest: report it, save it if it is time, keep a copy if the next one is far.

        Raises:
            Interrupted: It is saved, and the board asked to stop.
        """
        values = figures(self._history[number])
        self._board.record.remote(number, values, self._rows, note)
        now = time.monotonic()
        is_far = now - self._rested_at >= _SHORT_PASS_S
        self._note, self._rested_at, self._unsaved, self._copy = note, now, True, None
        if self._asked or now - self._saved_at >= self._checkpoint_seconds:
            self._save(self._trainee.state())
        elif is_far:
            log.info("point of rest %d: %s", number, note)
            state = self._trainee.state()
            self._copy = {n: tensor.detach().to("cpu", copy=True) for n, tensor in state.items()}
        if self._asked:
            self._leave()

    def _save(self, state: dict[str, Tensor]) -> None:
        self._checkpoint.save(state, self._history, complete=False)
        self._saved_at, self._unsaved, self._copy = time.monotonic(), False, None

    def _leave(self) -> None:
        log.info("stops, as asked to, after %d points of rest", len(self._history))
        raise Interrupted(f"{self._checkpoint.folder}: asked to stop")


class ReportingRows:
    """Training rows of which rank 0 tells how many went by."""

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
    """Tell whoever watches what the board says, and the board that it is to stop."""

    def __init__(self, board: Any, stage: str, planned_rows: int, context: Context) -> None:
        self._board, self._stage, self._planned = board, stage, planned_rows
        self._progress, self._stop = context.progress, context.stop
        self.growth: Growth | None = None
        self._last = -1  # number of the last record that was told
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(timeout=5)
        self._look()  # at what was left there last
        self._stop.heeded = False
        ray.kill(self._board)

    def tell(self, records: dict[int, dict[str, float]]) -> None:
        """Tell the figures of those records that are new."""
        for number in sorted(number for number in records if number > self._last):
            self._progress.measured(self._stage, number, records[number])
            self._last = number

    def _show(self) -> None:
        asked = False
        while not self._done.wait(_REPORT_SECONDS):
            if self._stop.requested and not asked:
                log.info("%s: asked to stop, and so is rank 0", self._stage)
                self._board.ask.remote(Ask.STOP_NOW)
                asked = True
            self._look()

    def _look(self) -> None:
        try:
            answer = ray.get(self._board.get.remote(self._last), timeout=5)
        except (ray.exceptions.RayError, TimeoutError):
            return
        rows, note, records, self._stop.heeded = answer
        try:
            if self._stop.heeded and self.growth and self.growth.pays(rows):
                self._board.ask.remote(Ask.STOP_AT_REST)  # what a pass has learnt is not given up
                self.growth = None  # once is enough
        except Exception:  # this thread has more to do
            log.warning("the training does not grow any more", exc_info=True)
            self.growth = None
        self.tell(records)
        self._progress.stage_advanced(min(rows, self._planned), self._planned, "rows", note)
