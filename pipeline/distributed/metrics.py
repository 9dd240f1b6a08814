"""A run's metrics, for Prometheus to scrape from Ray.

Ray's agent on each node exports what its processes report every ten seconds, and when they end
(``metrics_report_interval_ms``). Counters stay until the node goes. A gauge that is not set for two
intervals is dropped: those of a run are set repeatedly while it lasts, and the last values can be
scraped for 20 s after it.
"""

from __future__ import annotations

import calendar
import contextlib
import datetime
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray
import ray.util.metrics

from pipeline import counts, logs
from pipeline.progress import Progress

log = logging.getLogger(__name__)

LABELS = ("run_id", "pipeline")
_REMIND_SECONDS = 1.0  # Ray's shortest interval


@dataclass(frozen=True)
class Metric:
    """A metric, exported as ``ray_<name>``, counters with the suffix ``_total``."""

    name: str
    kind: Literal["gauge", "counter"]
    labels: tuple[str, ...]  # labels beside LABELS; never a shard or anything that grows with rows
    meaning: str


METRICS = {
    metric.name: metric
    for metric in (
        Metric("dec_stage_active", "gauge", ("stage",), "1 while the stage runs, then 0"),
        Metric("dec_stage_seconds", "gauge", ("stage",), "duration of the complete stage"),
        Metric("dec_stage_done", "gauge", ("stage", "unit"), "work done in the stage"),
        Metric("dec_stage_planned", "gauge", ("stage", "unit"), "maximum work of the stage"),
        Metric("dec_progress_timestamp_seconds", "gauge", (), "time of the run's last progress"),
        Metric("dec_rows", "gauge", (), "rows of the input"),
        Metric("dec_rows_assigned", "gauge", (), "rows whose cluster is written"),
        Metric("dec_loss", "gauge", ("stage",), "loss of the last pass or update"),
        Metric("dec_kl", "gauge", ("stage",), "KL divergence per row, in nats"),
        Metric("dec_label_change", "gauge", ("stage",), "share of rows that changed their cluster"),
        Metric("dec_clusters", "gauge", ("stage",), "clusters that have rows"),
        Metric("dec_largest_share", "gauge", ("stage",), "share of rows in the largest cluster"),
        Metric("dec_collapse_events", "gauge", ("stage",), "collapse events in this attempt"),
        Metric("dec_refused", "gauge", (), "1 if the night's new model was refused or failed"),
        Metric("dec_published_timestamp_seconds", "gauge", (), "time of the run's publish"),
        Metric("dec_published_ds_timestamp_seconds", "gauge", (), "00:00 UTC of the published ds"),
        Metric(
            "dec_ended_timestamp_seconds",
            "gauge",
            ("outcome",),
            "time of the run's end, by outcome: complete, or the error",
        ),
        Metric("dec_rows_processed", "counter", ("stage",), "rows that went through the stage"),
        Metric("dec_rows_read", "counter", ("stage",), "rows read from Parquet"),
        Metric("dec_bytes_read", "counter", ("stage",), "Parquet bytes of the columns read"),
        Metric("dec_bytes_written", "counter", ("stage",), "bytes of every file written"),
        Metric("dec_retries", "counter", ("stage", "kind"), "retried requests and work"),
    )
}

# Figures of ``Progress.measured`` with a gauge of their name.
_FIGURES = ("loss", "kl", "label_change", "clusters", "largest_share")

_Series = tuple[str, frozenset[tuple[str, str]]]  # name and labels


class Exporter:
    """Report values of this process to Ray, once it is initialized.

    A run whose metrics cannot be exported continues without them.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, Any] = {}
        self._gauges: dict[_Series, float] = {}
        self._counts: dict[_Series, float] = {}  # not yet reported to Ray
        self._lock = threading.Lock()
        self._broken = False

    def export(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge, or add to a counter."""
        place = logs.here()
        pipeline = place.pipeline.encode("ascii", "replace").decode()  # Ray takes no other
        series = name, frozenset({"run_id": place.run_id, "pipeline": pipeline, **labels}.items())
        with self._lock:
            if METRICS[name].kind == "gauge":
                self._gauges[series] = value
                self._hand_over({series: value})
            else:
                self._counts[series] = self._counts.get(series, 0.0) + value
                self._hand_over({})

    def count(self, what: str, amount: float, kind: str = "") -> None:
        """See ``pipeline.counts``."""
        labels = {"stage": logs.here().stage} | ({"kind": kind} if kind else {})
        self.export(f"dec_{what}", amount, **labels)

    def remind(self) -> None:
        """Set every gauge again: Ray drops those that are not set."""
        with self._lock:
            self._hand_over(self._gauges)

    def _hand_over(self, gauges: dict[_Series, float]) -> None:
        if self._broken or not ray.is_initialized():
            return
        try:
            for (name, tags), value in gauges.items():
                self._metric(name).set(value, tags=dict(tags))
            for (name, tags), value in self._counts.items():
                self._metric(name).inc(value, tags=dict(tags))
        except Exception:
            log.warning("metrics are no longer exported", exc_info=True)
            self._broken = True
        self._counts.clear()

    def _metric(self, name: str) -> Any:
        if name not in self._metrics:
            metric = METRICS[name]
            kind = {"gauge": ray.util.metrics.Gauge, "counter": ray.util.metrics.Counter}
            keys = LABELS + metric.labels
            self._metrics[name] = kind[metric.kind](name, metric.meaning, tag_keys=keys)
        return self._metrics[name]


class RunMetrics(Progress):
    """A ``Progress`` that exports metrics; as a block, also the outcome of the run.

    ``connect`` starts Ray, for an attempt that only publishes and needs it for nothing else.
    """

    def __init__(self, ds: str, connect: Callable[[], None]) -> None:
        self._exporter = Exporter()
        self._connect, self._worked = connect, False
        self._ds, self._stage, self._collapses = ds, "", 0
        self._done: dict[str, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._remind, name="metrics", daemon=True)

    def __enter__(self) -> RunMetrics:
        counts.send_to(self._exporter.count)
        self._exporter.export("dec_refused", 0)  # until the gate refuses
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        counts.send_to(None)
        self._over.set()
        self._thread.join()
        self._idle()
        outcome = "complete" if kind is None else kind.__name__
        idle = self._worked and not ray.is_initialized()
        if kind is None and idle and os.environ.get("RAY_ADDRESS"):
            with contextlib.suppress(Exception):  # metrics never fail a run
                self._connect()
        self._exporter.export("dec_ended_timestamp_seconds", time.time(), outcome=outcome)
        self._exporter.remind()  # Ray exports once more at shutdown

    def stage_started(self, stage: str) -> None:
        """See ``Progress``."""
        self._idle()
        self._stage = stage
        self._exporter.export("dec_stage_active", 1, stage=stage)
        self._progressed()

    def stage_advanced(self, done: int, total: int | None, unit: str, note: str = "") -> None:
        """See ``Progress``; the same value again is not progress."""
        before = self._done.get(self._stage, 0)
        if done == before:
            return
        self._done[self._stage] = done
        self._exporter.export("dec_stage_done", done, stage=self._stage, unit=unit)
        if total is not None:
            self._exporter.export("dec_stage_planned", total, stage=self._stage, unit=unit)
        if unit == "rows" and done > before:  # it goes back after a loss of workers
            self._exporter.export("dec_rows_processed", done - before, stage=self._stage)
        if unit == "rows" and self._stage == "assign":
            self._exporter.export("dec_rows_assigned", done)
        self._progressed()

    def measured(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """See ``Progress``."""
        for name in values.keys() & set(_FIGURES):
            self._exporter.export(f"dec_{name}", values[name], stage=stage)
        if "collapse_events" in values:
            self._collapses += int(values["collapse_events"])
            self._exporter.export("dec_collapse_events", self._collapses, stage=stage)
        if "refused" in values:
            self._exporter.export("dec_refused", values["refused"])
        rows = {"pin": "dec_rows", "assign": "dec_rows_assigned"}.get(stage)
        if rows and "rows" in values:
            self._exporter.export(rows, values["rows"])
        self._progressed()

    def stage_finished(self, stage: str, seconds: float, *, reused: bool) -> None:
        """See ``Progress``."""
        self._worked |= not reused
        self._exporter.export("dec_stage_seconds", seconds, stage=stage)
        if stage == "publish":
            if not reused:
                self._exporter.export("dec_published_timestamp_seconds", time.time())
            with contextlib.suppress(ValueError):  # undated
                midnight = calendar.timegm(datetime.date.fromisoformat(self._ds).timetuple())
                self._exporter.export("dec_published_ds_timestamp_seconds", midnight)
        self._progressed()

    def _remind(self) -> None:
        while not self._over.wait(_REMIND_SECONDS):
            self._exporter.remind()

    def _idle(self) -> None:
        if self._stage:
            self._exporter.export("dec_stage_active", 0, stage=self._stage)

    def _progressed(self) -> None:
        self._exporter.export("dec_progress_timestamp_seconds", time.time())
