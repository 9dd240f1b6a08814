"""The one reader of a run's records below ``runs/<run_id>/``.

``run.json`` exists from the start, ``config.yaml`` from the first completed stage, a marker
``stages/<stage>/done.json`` from the end of each stage, and ``metrics.json`` from the end of the
run. ``dec gc`` keeps all of them but the markers.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Any, TypeVar

import yaml

from pipeline.artifacts.inputs import Manifest
from pipeline.artifacts.records import Artifact, Record
from pipeline.artifacts.summaries import Summary
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.schema import NAME_PATTERN
from pipeline.storage import Store

log = logging.getLogger(__name__)

A = TypeVar("A", bound=Artifact)


class Marker(Record):
    """Content of ``stages/<stage>/done.json``: the artifact of a complete stage."""

    stage: str
    fingerprint: str
    seconds: float
    finished_at: str
    artifact: dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """Folder of a run in the output ``lake``."""

    lake: Store
    run_id: str

    @property
    def path(self) -> str:
        """Path below the output."""
        return f"runs/{self.run_id}"

    def stage_path(self, stage: str, name: str = "") -> str:
        """Path of a stage's folder, or of a file in it, below the output."""
        return f"{self.path}/stages/{stage}" + (f"/{name}" if name else "")

    def require(self) -> None:
        """Raise InputError where there is no such run."""
        if not self.lake.exists(f"{self.path}/run.json"):
            raise InputError(
                f"run {self.run_id} is not there; give one from {self.lake.locate('runs')}, for "
                "example the run id that `dec run` and `dec nightly` show"
            )

    @property
    def ds(self) -> str | None:
        """Logical date; None where it is not known."""
        ds = self._identity().get("ds")
        return ds if isinstance(ds, str) and re.fullmatch(NAME_PATTERN, ds) else None

    @property
    def version(self) -> str:
        """Version of the package that made the run; empty where it is not known."""
        return str(self._identity().get("version", ""))

    def marker(self, stage: str) -> Marker | None:
        """Marker of a stage; None where it is missing, damaged, or of another version."""
        try:
            return Marker.model_validate(self._json(f"stages/{stage}/done.json"))
        except FileNotFoundError:
            return None
        except ValueError:  # of JSON and of pydantic
            log.warning("run %s stage %s: marker cannot be read", self.run_id, stage)
            return None

    def found(self, stage: str, kind: type[A]) -> A | None:
        """Artifact of a stage; None where it is missing, damaged, or of another version."""
        marker = self.marker(stage)
        try:
            return kind.model_validate(marker.artifact) if marker else None
        except ValueError:
            log.warning("run %s stage %s: artifact cannot be read", self.run_id, stage)
            return None

    def artifact(self, stage: str, kind: type[A]) -> A:
        """Artifact of a stage.

        Raises:
            InputError: There is no such run, the stage is not complete, or its marker is damaged or
                of another version.
        """
        self.require()
        if (found := self.found(stage, kind)) is not None:
            return found
        path = self.stage_path(stage, "done.json")
        wrong = "cannot be read by this version" if self.lake.exists(path) else "is not there"
        raise InputError(
            f"stage {stage} of run {self.run_id} is not complete: {self.lake.locate(path)} "
            f"{wrong}; the command that made the run, `dec run` or `dec nightly`, adds what is "
            f"missing with --run-id {self.run_id}"
        )

    def read_config(self) -> Config:
        """Settings of the run.

        Raises:
            FileNotFoundError: No stage is complete.
            ValueError: They are damaged, or of another version.
        """
        try:
            content = yaml.safe_load(self.lake.read_bytes(f"{self.path}/config.yaml"))
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from None
        return Config.model_validate(content)

    def read_manifest(self) -> Manifest:
        """Manifest of the run, also after ``dec gc`` removed its markers.

        Raises:
            FileNotFoundError: The input is not pinned.
            ValueError: It is damaged, or of another version.
        """
        return Manifest.model_validate(self._json("manifest.json"))

    def read_summary(self) -> Summary:
        """Summary of the run.

        Raises:
            InputError: The run is not complete, or of another version.
        """
        path = self.lake.locate(f"{self.path}/metrics.json")
        try:
            return Summary.model_validate(self._json("metrics.json"))
        except FileNotFoundError:
            raise InputError(
                f"run {self.run_id}: {path} is not there; give a run that is complete, from the "
                "folder runs/ of the output"
            ) from None
        except (ValueError, TypeError):
            raise InputError(
                f"run {self.run_id}: {path} is damaged, or of a version that this one cannot read"
            ) from None

    def _identity(self) -> dict[str, Any]:
        try:
            content = self._json("run.json")
        except (FileNotFoundError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _json(self, name: str) -> Any:
        return self.lake.read_json(f"{self.path}/{name}")
