"""Trials: run, each kept as a small JSON file by the process that ran it, and read as a table.

These files are all that a killed tuning needs to go on. The state of Ray Tune and Optuna is never
read back: it is pickled, and these few numbers say the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from pydantic import ValidationError

from pipeline.artifacts.inputs import Manifest, Sample
from pipeline.artifacts.records import Record
from pipeline.clustering.kmeans import use_threads
from pipeline.config import Config
from pipeline.errors import NumericalError
from pipeline.input.samples import sampled_classes, sampled_features
from pipeline.model.devices import claimed_device
from pipeline.registry.models import load_scaler
from pipeline.storage import Store, parquet_bytes
from pipeline.tuning.measures import Judged, Measures, measure
from pipeline.tuning.space import TrialSettings

log = logging.getLogger(__name__)

FOLDER = "tuning"
_READ_AT_A_TIME = 16
# A label column with more classes than this is a key.
_MOST_CLASSES = 10_000
# Of the tuning that this process works for.
_kept: dict[tuple[str, str], Judged] = {}


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


@dataclass(frozen=True)
class Tuning:
    """What all trials share; small, for it is sent to each.

    Attributes:
        config: As it was before.
        folder: Where trials are kept.
        manifest: The pinned input.
        sample: The rows.
        threads: That a trial computes on.
        gpus: That it was given.
    """

    config: Config
    folder: TrialFolder
    manifest: Manifest
    sample: Sample
    threads: int = 1
    gpus: float = 0.0


def run_trial(tuning: Tuning, settings: TrialSettings) -> Trial:
    """Do a trial and keep it; one that has ended before is not done again.

    Returns:
        The trial; with the reason in ``failed`` where these settings lead to no partition.
    """
    known = tuning.folder.find(settings)
    if known is not None:
        return known
    torch.set_num_threads(tuning.threads)
    use_threads(tuning.threads)
    rows = _rows(tuning)
    started = time.monotonic()
    try:
        config = settings.applied(tuning.config)
        measures, failed = measure(config, rows, claimed_device(tuning.gpus)), ""
    except NumericalError as error:
        measures, failed = None, " ".join(str(error).split())
    seconds = round(time.monotonic() - started, 3)
    trial = Trial(settings=settings, measures=measures, failed=failed, seconds=seconds)
    tuning.folder.add(trial)
    return trial


def _rows(tuning: Tuning) -> Judged:
    """The sample and its neighbours: the same for all trials of a process."""
    key = (tuning.folder.lake.url, tuning.sample.fingerprint)
    if key not in _kept:
        _kept.clear()
        _kept[key] = rows_of(tuning)
    return _kept[key]


def rows_of(tuning: Tuning) -> Judged:
    """Read the sample, and prepare it for being judged on."""
    lake, sample = tuning.folder.lake, tuning.sample
    label = tuning.manifest.label
    classes_N = sampled_classes(lake, sample.parts, label) if label else None
    if classes_N is not None and classes_N.max(initial=0) >= _MOST_CLASSES:
        classes_N = None
    return Judged.of(
        np.ascontiguousarray(sampled_features(lake, sample.parts)),
        [column.width for column in tuning.manifest.features],
        load_scaler(lake, sample.scaler),
        seed=tuning.config.seed,
        classes_N=classes_N,
    )
