"""MLflow: one MLflow run per run, however many attempts that takes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from jobs.tracking import Attempt, Ending, Tracker, final_figures, final_tags
from pipeline.errors import Interrupted

# Give up an unreachable server in seconds, where MLflow tries for minutes, and send no telemetry.
# Variables that are set already win.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
# Limits of all MLflow versions: length of a parameter's value, parameters per request.
_PARAMETER_LENGTH, _PARAMETERS = 500, 100


class MlflowTracker(Tracker):
    """Writes parameters, metrics and tags with MLflow's client; no files."""

    def __init__(self, attempt: Attempt) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from mlflow.tracking import MlflowClient

        assert attempt.config.track.mlflow is not None
        self._attempt, self._settings = attempt, attempt.config.track.mlflow
        self._client: Any = MlflowClient(self._settings.uri)
        self._run = ""
        self._logged: set[tuple[str, int]] = set()  # metrics that the MLflow run has already

    def begin(self) -> None:
        """Resume the MLflow run of this run id, or start one."""
        attempt = self._attempt
        name = self._settings.experiment
        there = self._client.get_experiment_by_name(name)
        experiment = there.experiment_id if there else self._client.create_experiment(name)
        found = self._client.search_runs([experiment], f"tags.run_id = '{attempt.run_id}'")
        ours = [run for run in found if run.data.tags.get("output") == attempt.lake.url]
        if ours:
            self._run = ours[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            known = set(ours[0].data.params)
            for key in ours[0].data.metrics:
                history = self._client.get_metric_history(self._run, key)
                self._logged |= {(key, metric.step) for metric in history}
        else:
            tags = {"run_id": attempt.run_id, "ds": attempt.ds, "output": attempt.lake.url}
            made = self._client.create_run(experiment, tags=tags, run_name=attempt.run_id)
            self._run, known = made.info.run_id, set()
        self._log_parameters(known)

    def measured(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Log metrics ``stage/name`` that earlier attempts have not logged."""
        self._log_metrics({f"{stage}/{name}": value for name, value in values.items()}, step)

    def stage_finished(self, stage: str) -> None:
        """Set the tag ``stage`` to the last complete stage."""
        self._client.set_tag(self._run, "stage", stage)

    def end(self, ending: Ending) -> None:
        """Log the comparison, the model and the status."""
        if ending.error:
            self._client.set_tag(self._run, "error", str(ending.error)[:_PARAMETER_LENGTH])
            self._client.set_tag(self._run, "error_kind", type(ending.error).__name__)
            stopped = isinstance(ending.error, Interrupted)
            self._client.set_terminated(self._run, "KILLED" if stopped else "FAILED")
            return
        if summary := ending.summary:
            self._log_metrics(final_figures(summary), 0)
            for name, value in final_tags(summary).items():
                self._client.set_tag(self._run, name, value)
            for name in ("error", "error_kind"):  # of an earlier attempt
                self._client.set_tag(self._run, name, "")
        self._client.set_terminated(self._run, "FINISHED")

    def _log_parameters(self, known: set[str]) -> None:
        """Log the resolved settings; MLflow forbids changes, so the first attempt's stay."""
        from mlflow.entities import Param

        settings = _flat(self._attempt.config.model_dump(mode="json"))
        left = [Param(n, str(v)[:_PARAMETER_LENGTH]) for n, v in settings if n not in known]
        for start in range(0, len(left), _PARAMETERS):
            self._client.log_batch(self._run, params=left[start : start + _PARAMETERS])

    def _log_metrics(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        new = [key for key in values if (key, step) not in self._logged]
        if new:
            metrics = [Metric(key, values[key], now_ms, step) for key in new]
            self._client.log_batch(self._run, metrics=metrics)
        self._logged |= {(key, step) for key in new}


def _flat(settings: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
