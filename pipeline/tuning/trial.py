"""A trial, where it runs: the sample is read there, once a process, and the result is kept."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.artifacts.inputs import Manifest, Sample
from pipeline.clustering.kmeans import use_threads
from pipeline.config import Config
from pipeline.errors import NumericalError
from pipeline.input.samples import sampled_classes, sampled_features
from pipeline.model.devices import claimed_device
from pipeline.registry.models import load_scaler
from pipeline.tuning.measures import Judged, measure
from pipeline.tuning.space import TrialSettings
from pipeline.tuning.trials import Trial, TrialFolder

# A label column with more classes than this is a key.
_MOST_CLASSES = 10_000
# Of the tuning that this process works for.
_kept: dict[tuple[str, str], Judged] = {}


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
