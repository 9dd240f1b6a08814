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

from pipeline.artifacts.inputs import Manifest, Sample
from pipeline.artifacts.records import Record
from pipeline.clustering.kmeans import use_threads
from pipeline.config import Config
from pipeline.errors import ConfigError, NumericalError
from pipeline.input.samples import sampled_classes, sampled_features
from pipeline.model.devices import claimed_device
from pipeline.registry.models import load_scaler
from pipeline.storage import Store, parquet_bytes
from pipeline.tuning.measures import Measures, TuningRows, measure
from pipeline.tuning.space import TrialSettings

log = logging.getLogger(__name__)

FOLDER = "tuning"
_READ_AT_A_TIME = 16
# A label column with more classes is a key.
_MOST_CLASSES = 10_000
# Rows of the current tuning, by output and sample.
_kept: dict[tuple[str, str], TuningRows] = {}


class Trial(Record):
    """A finished trial."""

    settings: TrialSettings
    measures: Measures | None
    failure: str = ""  # reason in one line; empty where it did not fail
    seconds: float = 0.0


class Study(Record):
    """``tuning/<id>/tuning.json``: what all trials of a tuning have in common."""

    id: str
    # Fingerprint of settings, input, rows and range; trials with another one are of no use here.
    fingerprint: str
    min_clusters: int
    max_clusters: int
    rows: int


@dataclass(frozen=True)
class TrialFolder:
    """The folder of a tuning, below the output folder."""

    lake: Store
    id: str

    def path(self, name: str) -> str:
        """Path of a file of this tuning, below the output."""
        return f"{FOLDER}/{self.id}/{name}"

    def study(self) -> Study | None:
        """The study of the existing trials; None where there are none yet.

        Raises:
            ConfigError: Another version wrote it.
        """
        try:
            return Study.model_validate(self.lake.read_json(self.path("tuning.json")))
        except FileNotFoundError:
            return None
        except ValueError:  # of JSON and of pydantic
            raise ConfigError(
                f"tuning {self.id} was made by a version that this one cannot read; use another "
                "--run-id"
            ) from None

    def begin(self, study: Study) -> None:
        """Record the study of the trials that follow."""
        self.lake.write_json(self.path("tuning.json"), study.model_dump(mode="json"))

    def add(self, trial: Trial) -> None:
        """Keep a finished trial."""
        path = self.path(f"trials/{trial.settings.key}.json")
        self.lake.write_json(path, trial.model_dump(mode="json"))

    def find(self, settings: TrialSettings) -> Trial | None:
        """The trial of these settings; None where it has not finished."""
        return self._read(self.path(f"trials/{settings.key}.json"))

    def all(self) -> list[Trial]:
        """All finished trials, by their settings."""
        folder = self.path("trials")
        names = [file.name for file in self.lake.walk(folder) if file.name.endswith(".json")]
        paths = [f"{folder}/{name}" for name in names if not name.startswith(".")]
        with ThreadPoolExecutor(_READ_AT_A_TIME) as readers:
            found = [trial for trial in readers.map(self._read, paths) if trial is not None]
        by = ("clusters", "width", "embedding", "refine_passes", "augmentation")
        return sorted(found, key=lambda t: [str(getattr(t.settings, n) or 0.0) for n in by])

    def _read(self, path: str) -> Trial | None:
        try:
            return Trial.model_validate(self.lake.read_json(path))
        except FileNotFoundError:
            return None
        except ValueError:  # another version, or damaged: it is run again
            log.warning("trial %s cannot be read", path)
            return None


def trials_bytes(trials: Sequence[Trial], scores: Sequence[float | None], chosen: str) -> bytes:
    """All trials as a Parquet table: settings, measures, score (None: rejected), and the choice."""
    rows = []
    for trial, score in zip(trials, scores, strict=True):
        measures = trial.measures.model_dump() if trial.measures else dict.fromkeys(_MEASURES)
        rows.append(
            trial.settings.model_dump()
            | measures
            | {"score": score, "failure": trial.failure or None, "seconds": trial.seconds}
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
        ("failure", pa.string()),
        ("seconds", pa.float64()),
        ("recommended", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Tuning:
    """What all trials share; small, because each gets a copy."""

    config: Config  # config that the trials' settings are applied to
    folder: TrialFolder
    manifest: Manifest
    sample: Sample
    threads: int = 1
    gpus: float = 0.0


def run_trial(tuning: Tuning, settings: TrialSettings) -> Trial:
    """Run a trial and keep it, unless it has finished before.

    ``failure`` has the reason where its settings lead to no partition.
    """
    if (known := tuning.folder.find(settings)) is not None:
        return known
    torch.set_num_threads(tuning.threads)
    use_threads(tuning.threads)
    rows = rows_of(tuning)
    started = time.monotonic()
    try:
        config = settings.applied(tuning.config)
        measures, failure = measure(config, rows, claimed_device(tuning.gpus)), ""
    except NumericalError as error:
        measures, failure = None, " ".join(str(error).split())
    seconds = round(time.monotonic() - started, 3)
    trial = Trial(settings=settings, measures=measures, failure=failure, seconds=seconds)
    tuning.folder.add(trial)
    return trial


def rows_of(tuning: Tuning) -> TuningRows:
    """The sample and its neighbours, kept for all trials of this process."""
    lake, sample, label = tuning.folder.lake, tuning.sample, tuning.manifest.label
    key = (lake.url, sample.fingerprint)
    if key not in _kept:
        _kept.clear()
        classes_N = sampled_classes(lake, sample.parts, label) if label else None
        if classes_N is not None and classes_N.max(initial=0) >= _MOST_CLASSES:
            classes_N = None
        _kept[key] = TuningRows.of(
            np.ascontiguousarray(sampled_features(lake, sample.parts)),
            [column.width for column in tuning.manifest.features],
            load_scaler(lake, sample.scaler),
            seed=tuning.config.seed,
            classes_N=classes_N,
        )
    return _kept[key]
