"""What a run has left, as far as it is there and this version reads it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import yaml
from pydantic import ValidationError

from pipeline.artifacts.assignments import Assignments
from pipeline.artifacts.explanations import Description, Explanation
from pipeline.artifacts.inputs import FeatureColumn, Manifest, Sample
from pipeline.artifacts.models import (
    ClusteringModel,
    Comparison,
    InitialCentroids,
    PretrainedAutoencoder,
    RefinedModel,
)
from pipeline.artifacts.nights import Champion, Identity, NightDecision, Serving, Verdict
from pipeline.artifacts.records import Artifact, LakePath, StoredFile
from pipeline.artifacts.summaries import NightSummary, Summary
from pipeline.config import Config
from pipeline.engine import Marker
from pipeline.errors import InputError, PipelineError
from pipeline.lake.receipts import Rewritten, read_receipts, replacements
from pipeline.storage import Store, sha256

log = logging.getLogger(__name__)

A = TypeVar("A", bound=Artifact)


@dataclass(frozen=True)
class Labelling:
    """What labelled the rows of a run, and the rows that it can be shown on.

    Attributes:
        model: Scaler, encoder and centroids.
        sample: The reference sample: the run's own, or that of the champion.
        features: Its columns.
        ids: Permanent ids; None: ids are positions.
    """

    model: ClusteringModel
    sample: Sample
    features: tuple[FeatureColumn, ...]
    ids: StoredFile | None


@dataclass(frozen=True)
class RunFiles:
    """A run's folder. What is missing or of another version is None, never an error.

    Attributes:
        lake: The output folder.
        run_id: The run.
    """

    lake: Store
    run_id: str
    _seen: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def path(self) -> str:
        """The run's folder, below the output."""
        return f"runs/{self.run_id}"

    @cached_property
    def summary(self) -> Summary | NightSummary:
        """The end of the run.

        Raises:
            InputError: The run is not there, is not complete, or is of a version that this one
                does not read.
        """
        path = f"{self.path}/metrics.json"
        try:
            content = self.lake.read_json(path)
        except FileNotFoundError:
            raise InputError(
                f"{self.lake.locate(path)} is not there; give a run that is complete, from the "
                "folder runs/ of the output"
            ) from None
        except ValueError:
            raise InputError(f"{self.lake.locate(path)} is damaged; it is not JSON") from None
        for kind in (NightSummary, Summary):
            try:
                return kind.model_validate(content)
            except ValidationError:
                continue
        raise InputError(
            f"run {self.run_id} in {self.lake.url} is of a version that this one does not read"
        )

    @cached_property
    def config(self) -> Config | None:
        """The run's settings."""
        try:
            return Config.model_validate(
                yaml.safe_load(self.lake.read_bytes(f"{self.path}/config.yaml"))
            )
        except (FileNotFoundError, ValueError, yaml.YAMLError):
            return None

    @cached_property
    def version(self) -> str:
        """Of the package that made the run; empty where it does not say."""
        try:
            return str(self.lake.read_json(f"{self.path}/run.json")["version"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return ""

    @cached_property
    def finished_at(self) -> str:
        """When the partition became visible, UTC; empty where nothing says it."""
        marker = self._marker("publish")
        return marker.finished_at if marker else ""

    @property
    def manifest(self) -> Manifest | None:
        """See the stage pin."""
        return self._artifact("pin", Manifest)

    @property
    def autoencoder(self) -> PretrainedAutoencoder | None:
        """None where nothing was pretrained: a night that refreshes, or fits nothing."""
        return self._artifact("pretrain", PretrainedAutoencoder)

    @property
    def centroids(self) -> InitialCentroids | None:
        """See the stage init_centroids."""
        return self._artifact("init_centroids", InitialCentroids)

    @property
    def refined(self) -> RefinedModel | None:
        """See the stage refine."""
        return self._artifact("refine", RefinedModel)

    @property
    def comparison(self) -> Comparison | None:
        """See the stage evaluate."""
        return self._artifact("evaluate", Comparison)

    @property
    def assignments(self) -> Assignments | None:
        """See the stage assign."""
        return self._artifact("assign", Assignments)

    @property
    def explanation(self) -> Explanation | None:
        """See the stage explain."""
        return self._artifact("explain", Explanation)

    @property
    def description(self) -> Description | None:
        """See the stage describe."""
        return self._artifact("describe", Description)

    @property
    def decision(self) -> NightDecision | None:
        """Of a night."""
        return self._artifact("decide", NightDecision)

    @property
    def identity(self) -> Identity | None:
        """Of a night that fitted a model."""
        return self._artifact("identify", Identity)

    @property
    def verdict(self) -> Verdict | None:
        """Of a night that fitted a model, or could not."""
        kept = self.summary.verdict if isinstance(self.summary, NightSummary) else None
        return kept or self._artifact("gate", Verdict)

    @cached_property
    def labelling(self) -> Labelling | None:
        """None where the run is of another version, or its model is not said."""
        if champion := self._champion():
            reference = champion.reference
            return Labelling(
                champion.model, self._as_left(reference.sample), reference.features, champion.ids
            )
        model = self._artifact("select", ClusteringModel)
        sample, manifest = self._artifact("sample", Sample), self.manifest
        if model is None or sample is None or manifest is None:
            return None
        return Labelling(model, self._as_left(sample), manifest.features, None)

    def table(
        self,
        file: StoredFile | None,
        columns: Sequence[str] | None = None,
        rows: pc.Expression | None = None,
    ) -> pa.Table | None:
        """A table of the run, as ``dec forget`` left it; None where it cannot be read."""
        if file is None:
            return None
        try:
            return self.lake.read_table(self.as_left(file).path, columns, rows)
        except (OSError, pa.ArrowInvalid, PipelineError):
            log.warning("%s cannot be read", self.lake.locate(file.path), exc_info=True)
            return None

    def as_left(self, file: StoredFile) -> StoredFile:
        """The file that took the place of one with rows that were forgotten."""
        while (by := self._replaced.get(file.path)) and by.new:
            file = StoredFile(path=by.new, sha256=by.sha256, bytes=by.bytes)
        return file

    @cached_property
    def _replaced(self) -> dict[LakePath, Rewritten]:
        return dict(replacements(read_receipts(self.lake)))

    def _as_left(self, sample: Sample) -> Sample:
        return sample.model_copy(update={"parts": tuple(map(self.as_left, sample.parts))})

    @property
    def map_file(self) -> StoredFile | None:
        """The map as ``dec forget`` left it; None where it has to be made."""
        path = f"{self.path}/stages/report/map.parquet"
        file = self.stored("report", "map") or StoredFile(path=path, sha256="", bytes=0)
        path = self.as_left(file).path
        try:
            content = self.lake.read_bytes(path)
        except FileNotFoundError:
            return None
        return StoredFile(path=path, sha256=sha256(content), bytes=len(content))

    def stored(self, stage: str, name: str) -> StoredFile | None:
        """A file that a stage's artifact names; None where it names none."""
        marker = self._marker(stage)
        try:
            return StoredFile.model_validate(marker.artifact[name]) if marker else None
        except (KeyError, ValidationError):
            return None

    def _champion(self) -> Champion | None:
        if serving := self._artifact("promote", Serving):
            return serving.champion
        if decision := self.decision:
            return decision.champion
        return None

    def _artifact(self, stage: str, kind: type[A]) -> A | None:
        if stage not in self._seen:
            marker = self._marker(stage)
            found: Artifact | None = None
            if marker is not None:
                try:
                    found = kind.model_validate(marker.artifact)
                except ValidationError:
                    log.warning("run %s stage %s: of another version", self.run_id, stage)
            self._seen[stage] = found
        kept: A | None = self._seen[stage]
        return kept

    def _marker(self, stage: str) -> Marker | None:
        try:
            return Marker.model_validate(
                self.lake.read_json(f"{self.path}/stages/{stage}/done.json")
            )
        except (FileNotFoundError, ValueError):  # of pydantic, too
            return None
