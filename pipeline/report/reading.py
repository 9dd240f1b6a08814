"""What a run has left, as far as it is there and this version reads it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
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
from pipeline.errors import PipelineError
from pipeline.lake.receipts import Rewritten, read_receipts, replacements
from pipeline.runs import RunFolder
from pipeline.storage import sha256

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
class RunFiles(RunFolder):
    """A run's folder for its page: what is missing or of another version is None, not an error."""

    _seen: dict[str, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def summary(self) -> Summary | NightSummary:
        """See ``read_summary``."""
        return self.read_summary()

    @cached_property
    def config(self) -> Config | None:
        """Settings of the run; None where they cannot be read."""
        try:
            return self.read_config()
        except (FileNotFoundError, ValueError):
            return None

    @cached_property
    def finished_at(self) -> str:
        """When the partition became visible, UTC; empty where nothing says it."""
        marker = self.marker("publish")
        return marker.finished_at if marker else ""

    @property
    def manifest(self) -> Manifest | None:
        """See the stage pin."""
        return self._once("pin", Manifest)

    @property
    def autoencoder(self) -> PretrainedAutoencoder | None:
        """None where nothing was pretrained: a night that refreshes, or fits nothing."""
        return self._once("pretrain", PretrainedAutoencoder)

    @property
    def centroids(self) -> InitialCentroids | None:
        """See the stage init_centroids."""
        return self._once("init_centroids", InitialCentroids)

    @property
    def refined(self) -> RefinedModel | None:
        """See the stage refine."""
        return self._once("refine", RefinedModel)

    @property
    def comparison(self) -> Comparison | None:
        """See the stage evaluate."""
        return self._once("evaluate", Comparison)

    @property
    def assignments(self) -> Assignments | None:
        """See the stage assign."""
        return self._once("assign", Assignments)

    @property
    def explanation(self) -> Explanation | None:
        """See the stage explain."""
        return self._once("explain", Explanation)

    @property
    def description(self) -> Description | None:
        """See the stage describe."""
        return self._once("describe", Description)

    @property
    def decision(self) -> NightDecision | None:
        """Of a night."""
        return self._once("decide", NightDecision)

    @property
    def identity(self) -> Identity | None:
        """Of a night that fitted a model."""
        return self._once("identify", Identity)

    @property
    def verdict(self) -> Verdict | None:
        """Of a night that fitted a model, or could not."""
        kept = self.summary.verdict if isinstance(self.summary, NightSummary) else None
        return kept or self._once("gate", Verdict)

    @cached_property
    def labelling(self) -> Labelling | None:
        """None where the run is of another version, or its model is not said."""
        if champion := self._champion():
            reference = champion.reference
            return Labelling(
                champion.model, self._as_left(reference.sample), reference.features, champion.ids
            )
        model = self._once("select", ClusteringModel)
        sample, manifest = self._once("sample", Sample), self.manifest
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
        marker = self.marker(stage)
        try:
            return StoredFile.model_validate(marker.artifact[name]) if marker else None
        except (KeyError, ValidationError):
            return None

    def _champion(self) -> Champion | None:
        if serving := self._once("promote", Serving):
            return serving.champion
        if decision := self.decision:
            return decision.champion
        return None

    def _once(self, stage: str, kind: type[A]) -> A | None:
        """``found``, which is read once."""
        if stage not in self._seen:
            self._seen[stage] = self.found(stage, kind)
        kept: A | None = self._seen[stage]
        return kept
