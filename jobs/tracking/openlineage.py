"""OpenLineage: input and output datasets of a run, for data catalogues."""

from __future__ import annotations

import contextlib
import datetime
import glob
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pipeline
from jobs.tracking import Attempt, Ending, Tracker
from pipeline.artifacts.assignments import Assignments
from pipeline.artifacts.inputs import Manifest
from pipeline.errors import Interrupted, PipelineError
from pipeline.lake.snapshots import read_file_list
from pipeline.runs import RunFolder
from pipeline.schema import UNDATED, assignment_schema
from pipeline.storage import S3_SCHEME

_PRODUCER = f"urn:dec-pipeline:{pipeline.__version__}"
_API_KEY = "OPENLINEAGE_API_KEY"
_RETRY = {"total": 2, "connect": 2, "read": 2}  # give up an unreachable server in seconds


class OpenlineageTracker(Tracker):
    """Emits START, and COMPLETE, FAIL or ABORT, of each attempt with OpenLineage's transports.

    OpenLineage's client is not used: it would add settings from the environment.
    """

    def __init__(self, attempt: Attempt) -> None:
        from openlineage.client.event_v2 import set_producer
        from openlineage.client.transport import Transport
        from openlineage.client.transport.file import FileConfig, FileTransport
        from openlineage.client.transport.http import HttpConfig, HttpTransport

        set_producer(_PRODUCER)
        assert attempt.config.track.openlineage is not None
        self._attempt, self._settings = attempt, attempt.config.track.openlineage
        self._transport: Transport
        if self._settings.to.startswith(("http://", "https://")):
            auth = {"type": "api_key", "apiKey": key} if (key := os.environ.get(_API_KEY)) else {}
            params = {"url": self._settings.to, "auth": auth, "retry": _RETRY}
            self._transport = HttpTransport(HttpConfig.from_dict(params))
        else:
            path = Path(self._settings.to)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._transport = FileTransport(FileConfig(str(path), append=True))

    def begin(self) -> None:
        """Emit START, with what is known of the datasets before the first stage."""
        self._emit("START", self._attempt.started, {}, None)

    def end(self, ending: Ending) -> None:
        """Emit COMPLETE with schemas and rows, FAIL with the error, or ABORT when interrupted."""
        from openlineage.client.facet_v2 import error_message_run

        kind, facets = "COMPLETE", {}
        if ending.error:
            kind = "ABORT" if isinstance(ending.error, Interrupted) else "FAIL"
            message = f"{type(ending.error).__name__} in {ending.stage}: {ending.error}"
            facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(message, "Python")
        self._emit(kind, datetime.datetime.now(datetime.UTC), facets, ending)

    def _emit(
        self, kind: str, at: datetime.datetime, facets: dict[str, Any], ending: Ending | None
    ) -> None:
        from openlineage.client.event_v2 import Job, Run, RunEvent, RunState
        from openlineage.client.facet_v2 import job_type_job, nominal_time_run, tags_run

        attempt, started = self._attempt, self._attempt.started.isoformat()
        run = f"{attempt.lake.url}/runs/{attempt.run_id}"
        tags = {"run_id": attempt.run_id, "ds": attempt.ds}
        facets["tags"] = tags_run.TagsRunFacet(
            [tags_run.TagsRunFacetFields(key, value, "dec-pipeline") for key, value in tags.items()]
        )
        if attempt.ds != UNDATED:
            day = datetime.date.fromisoformat(attempt.ds)
            facets["nominalTime"] = nominal_time_run.NominalTimeRunFacet(
                f"{day}T00:00:00Z", f"{day + datetime.timedelta(days=1)}T00:00:00Z"
            )
        job_type = job_type_job.JobTypeJobFacet("BATCH", "DEC", "JOB")
        event = RunEvent(
            eventType=RunState[kind],
            eventTime=at.isoformat(),
            run=Run(str(uuid.uuid5(uuid.NAMESPACE_URL, f"{run}#{started}")), facets),
            job=Job(self._settings.namespace, self._settings.job, {"jobType": job_type}),
            inputs=self._inputs(),
            outputs=self._outputs(ending),
        )
        self._transport.emit(event)

    # ------------------------------------------------------------------------------- datasets

    def _inputs(self) -> list[Any]:
        from openlineage.client.event_v2 import InputDataset
        from openlineage.client.facet_v2 import dataset_version_dataset as versions
        from openlineage.client.facet_v2 import input_statistics_input_dataset

        manifest = self._manifest()
        facets: dict[str, Any] = {}
        statistics: dict[str, Any] = {}
        if manifest:
            fields = {
                f.name: (f.type or manifest.dtype) + (f"[{f.width}]" if f.vector else "")
                for f in manifest.features
            }
            fields |= {field.name: str(field.type) for field in manifest.carried_schema}
            facets["schema"] = _schema(fields)
        if manifest and manifest.table:
            facets["version"] = versions.DatasetVersionDatasetFacet(manifest.table.version)
        source = self._attempt.config.source
        locations = source.locations or [str(source.table)]
        if manifest and len(locations) == 1:
            statistics["inputStatistics"] = (
                input_statistics_input_dataset.InputStatisticsInputDatasetFacet(
                    rowCount=manifest.rows, size=manifest.bytes, fileCount=manifest.shard_count
                )
            )
        return [
            InputDataset(*dataset_name(location), inputFacets=statistics, facets=facets)
            for location in locations
        ]

    def _outputs(self, ending: Ending | None) -> list[Any]:
        from openlineage.client.event_v2 import OutputDataset
        from openlineage.client.facet_v2 import dataset_version_dataset as versions
        from openlineage.client.facet_v2 import output_statistics_output_dataset as statistics

        name = dataset_name(self._attempt.lake.url)
        manifest = self._manifest()
        if not ending or not ending.summary or not manifest:
            return [OutputDataset(*name)]
        schema = assignment_schema(manifest.carried_schema, manifest.keys)
        lake = self._attempt.lake
        assignments = RunFolder(lake, self._attempt.run_id).artifact("assign", Assignments)
        files = read_file_list(lake, assignments.files.path).files
        counts = statistics.OutputStatisticsOutputDatasetFacet(
            rowCount=ending.summary.rows_out,
            size=sum(file.bytes for file in files),
            fileCount=len(files),
        )
        facets = {
            "schema": _schema({field.name: str(field.type) for field in schema}),
            "version": versions.DatasetVersionDatasetFacet(str(ending.summary.snapshot)),
        }
        return [OutputDataset(*name, outputFacets={"outputStatistics": counts}, facets=facets)]

    def _manifest(self) -> Manifest | None:
        with contextlib.suppress(OSError, ValueError, PipelineError):  # not pinned yet
            return RunFolder(self._attempt.lake, self._attempt.run_id).read_manifest()
        return None


def _schema(types: Mapping[str, str]) -> Any:
    from openlineage.client.facet_v2 import schema_dataset

    fields = [schema_dataset.SchemaDatasetFacetFields(name, kind) for name, kind in types.items()]
    return schema_dataset.SchemaDatasetFacet(fields)


def dataset_name(location: str) -> tuple[str, str]:
    """Namespace and name of a location, by OpenLineage's rules for S3 and for files.

    For a glob, the folder above its first wildcard.
    """
    parts = location.rstrip("/").split("/")
    fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    location = "/".join(parts[:fixed])
    if location.startswith(S3_SCHEME):
        bucket, _, key = location.removeprefix(S3_SCHEME).partition("/")
        return f"{S3_SCHEME}{bucket}", key or "/"
    return "file", os.path.abspath(location or ".")
