"""TensorBoard: the metrics of a run as an event file, in a folder named after the run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.tracking import Attempt, Ending, Tracker, final_figures
from pipeline.storage import Store


class TensorboardTracker(Tracker):
    """Writes scalars with TensorBoard's own writer, which needs no TensorFlow.

    Files in an object store cannot grow: there, a local file is copied after each stage and at the
    end.
    """

    def __init__(self, attempt: Attempt) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder = str(attempt.config.track.tensorboard)
        self._copies = Store(f"{folder.rstrip('/')}/{attempt.run_id}") if "://" in folder else None
        self._folder = Path(folder, attempt.run_id)
        if self._copies:
            self._temporary = tempfile.TemporaryDirectory(prefix="dec-tensorboard-")
            self._folder = Path(self._temporary.name)
        self._writer: Any = EventFileWriter(str(self._folder))
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary

    def measured(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Write scalars ``stage/name``."""
        self._write({f"{stage}/{name}": value for name, value in values.items()}, step)

    def stage_finished(self, stage: str) -> None:
        """Make everything up to here visible."""
        self._writer.flush()
        self._copy()

    def end(self, ending: Ending) -> None:
        """Write the comparison, and close the file."""
        if ending.summary:
            self._write(final_figures(ending.summary), 0)
        self._writer.close()
        self._copy()

    def _write(self, values: Mapping[str, float], step: int) -> None:
        scalars = [self._summary.Value(tag=tag, simple_value=v) for tag, v in values.items()]
        summary = self._summary(value=scalars)
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))

    def _copy(self) -> None:
        if self._copies:
            for file in self._folder.iterdir():
                self._copies.write_bytes(file.name, file.read_bytes())
