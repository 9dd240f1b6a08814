"""Trials as files: one small JSON document each, written by whoever has done it, when it is done.

That is all a tuning needs to go on after it was killed. Nothing of Ray Tune's or Optuna's own state
is read back: it is pickled, and these few numbers say the same.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
from pydantic import ValidationError

from pipeline.artifacts.records import Record
from pipeline.storage import Store, parquet_bytes
from pipeline.tuning.measures import Measures
from pipeline.tuning.space import TrialSettings

log = logging.getLogger(__name__)

FOLDER = "tuning"
_READ_AT_A_TIME = 16


class Trial(Record):
    """A trial that has ended.

    Attributes:
        settings: That it tried.
        measures: What it was found to be; None where it failed.
        failed: Why, in one line; empty where it did not.
        seconds: It took.
    """

    settings: TrialSettings
    measures: Measures | None
    failed: str = ""
    seconds: float = 0.0


class Study(Record):
    """``tuning/<id>/tuning.json``: what the trials of a folder have in common.

    Attributes:
        id: Of the tuning.
        fingerprint: Of the settings, the input, the rows and the range; trials of another one say
            nothing here.
        fewest: Clusters, the bounds of the range.
        most: The other one.
        rows: Of the sample.
    """

    id: str
    fingerprint: str
    fewest: int
    most: int
    rows: int


@dataclass(frozen=True)
class TrialFolder:
    """The folder of a tuning.

    Attributes:
        lake: The output.
        id: Of the tuning.
    """

    lake: Store
    id: str

    def path(self, name: str) -> str:
        """Of a file of this tuning, below the output."""
        return f"{FOLDER}/{self.id}/{name}"

    def study(self) -> Study | None:
        """What the trials that are there have in common; None where there are none yet."""
        try:
            return Study.model_validate(self.lake.read_json(self.path("tuning.json")))
        except FileNotFoundError:
            return None

    def begin(self, study: Study) -> None:
        """Say for what the trials are that follow."""
        self.lake.write_json(self.path("tuning.json"), study.model_dump(mode="json"))

    def add(self, trial: Trial) -> None:
        """Keep a trial that has ended."""
        path = self.path(f"trials/{trial.settings.key}.json")
        self.lake.write_json(path, trial.model_dump(mode="json"))

    def find(self, settings: TrialSettings) -> Trial | None:
        """The trial of these settings, where it has ended before."""
        return self._read(self.path(f"trials/{settings.key}.json"))

    def all(self) -> list[Trial]:
        """All that have ended, by what they tried."""
        folder = self.path("trials")
        names = [file.name for file in self.lake.walk(folder) if file.name.endswith(".json")]
        paths = [f"{folder}/{name}" for name in names if not name.startswith(".")]
        with ThreadPoolExecutor(_READ_AT_A_TIME) as readers:
            found = [trial for trial in readers.map(self._read, paths) if trial is not None]
        return sorted(found, key=lambda trial: tuple(map(str, order_of(trial.settings))))

    def _read(self, path: str) -> Trial | None:
        try:
            return Trial.model_validate(self.lake.read_json(path))
        except FileNotFoundError:
            return None
        except (ValueError, ValidationError):  # of another version, or damaged: it is done again
            log.warning("trial %s cannot be read", path)
            return None


def order_of(settings: TrialSettings) -> tuple[float, ...]:
    """Sorts by the number of clusters, then the smaller model, then whatever is left."""
    return (
        settings.clusters,
        settings.width,
        settings.embedding,
        settings.refine_passes,
        settings.augmentation or 0.0,
    )


def trials_bytes(trials: Sequence[Trial], scores: Sequence[float | None], chosen: str) -> bytes:
    """All trials as a Parquet table: what was tried, what came out, which one is recommended.

    Args:
        trials: In their order.
        scores: Of each, by the rule; None where it does not count.
        chosen: Key of the one that is recommended.
    """
    rows = []
    for trial, score in zip(trials, scores, strict=True):
        measures = trial.measures.model_dump() if trial.measures else dict.fromkeys(_MEASURES)
        rows.append(
            trial.settings.model_dump()
            | measures
            | {"score": score, "failed": trial.failed or None, "seconds": trial.seconds}
            | {"recommended": trial.settings.key == chosen}
        )
    return parquet_bytes(pa.Table.from_pylist(rows, schema=_SCHEMA))


_MEASURES = list(Measures.model_fields)
_SCHEMA = pa.schema(
    [
        ("clusters", pa.int32()),
        ("embedding", pa.int32()),
        ("width", pa.float64()),
        ("scaling", pa.string()),
        ("augmentation", pa.float64()),
        ("refine_passes", pa.int32()),
        *((n, pa.int32() if n == "empty_clusters" else pa.float64()) for n in _MEASURES),
        ("score", pa.float64()),
        ("failed", pa.string()),
        ("seconds", pa.float64()),
        ("recommended", pa.bool_()),
    ]
)
