"""The config as a whole: its sections, and the checks across them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import yaml
from pydantic import Field, model_validator

from pipeline.config.execution import Execution, Prices, Retention, Storage, Track
from pipeline.config.fit import (
    Augment,
    AutoClusters,
    Centroids,
    Clusters,
    Embedding,
    Evaluate,
    Model,
    Pretrain,
    Refine,
)
from pipeline.config.nights import Assign, Gate, Matching, Schedule
from pipeline.config.publication import Explain, Lake
from pipeline.config.sections import Affects, Location, Section, settings_in
from pipeline.config.source import Source

# FAISS warns below this many points a centroid, and means below it are mostly noise.
MIN_SAMPLE_ROWS_PER_CLUSTER = 39


class Config(Section, affects=Affects.MODEL):
    """All settings of a run."""

    source: Source
    output: Annotated[Location, Affects.EXECUTION] = Field(min_length=1)
    """Location of the lake: a folder, or s3://bucket/prefix/."""
    clusters: Clusters
    """Number of clusters; auto, or {most: 30}, finds it in the sample."""
    model: Model = Model()
    augment: Augment = Augment()
    pretrain: Pretrain = Pretrain()
    embedding: Embedding = Embedding()
    centroids: Centroids = Centroids()
    refine: Refine = Refine()
    evaluate: Evaluate = Evaluate()
    schedule: Schedule = Schedule()
    matching: Matching = Matching()
    gate: Gate = Gate()
    assign: Assign = Assign()
    explain: Explain = Explain()
    lake: Lake = Lake()
    execution: Execution = Execution()
    retention: Retention = Retention()
    storage: Storage = Storage()
    prices: Prices = Prices()
    track: Track = Track()
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of all random numbers."""

    @model_validator(mode="after")
    def _sample_feeds_every_cluster(self) -> Config:
        needed = MIN_SAMPLE_ROWS_PER_CLUSTER * self.most_clusters
        name = "clusters.most" if isinstance(self.clusters, AutoClusters) else "clusters"
        if self.centroids.sample_rows < needed:
            raise ValueError(
                f"centroids.sample_rows={self.centroids.sample_rows} must be >= {needed} "
                f"({MIN_SAMPLE_ROWS_PER_CLUSTER} rows for each of {name}={self.most_clusters})"
            )
        return self

    @model_validator(mode="after")
    def _files_or_a_table(self) -> Config:
        if reason := self.source.misplaced():
            raise ValueError(reason)
        return self

    @model_validator(mode="after")
    def _label_is_no_feature(self) -> Config:
        if self.evaluate.label in self.source.feature_patterns:
            raise ValueError(
                f"evaluate.label={self.evaluate.label!r} is in source.features too; ground truth "
                "is for scoring only. Take it out of one of them"
            )
        return self

    @model_validator(mode="after")
    def _keys_are_not_explained(self) -> Config:
        if both := sorted(set(self.explain.columns) & set(self.source.keys)):
            raise ValueError(
                f"explain.columns names {', '.join(both)}, which source.keys does too; a profile "
                "would hold keys, and dec forget would not find them. Take it out of one of them"
            )
        return self

    @model_validator(mode="after")
    def _minimum_is_at_most_the_maximum(self) -> Config:
        run = self.execution
        for least, minimum, most, maximum in (
            ("min_workers", run.min_workers, "workers", run.workers),
            ("min_actors", run.min_actors, "actors", run.actors or run.workers),
        ):
            if minimum is not None and minimum > maximum:
                raise ValueError(
                    f"execution.{least}={minimum} must be <= execution.{most}, which is {maximum}"
                )
        return self

    @model_validator(mode="after")
    def _catalog_on_s3(self) -> Config:
        if self.lake.format == "iceberg" and not self.lake.catalog and "://" in self.output:
            raise ValueError(
                f"lake.catalog must be set for output={self.output}: a SQLite file cannot lie in "
                "an object store. Give {type: rest, uri: https://…}, {type: glue}, or, where only "
                "one machine publishes, {type: sql, uri: sqlite:////a/local/path.db}"
            )
        return self

    @property
    def most_clusters(self) -> int:
        """K, or its maximum where K is found in the data; a model's own K is in its artifacts."""
        return self.clusters.most if isinstance(self.clusters, AutoClusters) else self.clusters

    def content(self, *names: str | Affects, without: tuple[str, ...] = ()) -> dict[str, Any]:
        """What a fingerprint holds of some settings: JSON values by path, defaults left out.

        ``names`` and ``without`` are settings or sections; ``names`` also what settings affect.
        """
        found: dict[str, Any] = {}
        for setting in settings_in(type(self)):
            if setting.is_in(names) and not setting.is_in(without):
                found |= setting.content(self)
        return found

    def result_settings(self) -> dict[str, Any]:
        """Content of the settings that change the result, for default run ids."""
        return self.content(Affects.MODEL, Affects.RESULT)

    def fit_settings(self) -> dict[str, Any]:
        """Content of the settings that decide what is learnt from given rows."""
        return self.content(Affects.MODEL)

    def differences(self, before: Mapping[str, Any]) -> list[str]:
        """Settings whose values change what a published run left, in order of their names.

        ``before`` are the resolved settings of that run; settings that did not exist then had
        today's default.

        Raises:
            ValueError: This version cannot read them.
        """
        published = (Affects.MODEL, Affects.RESULT, Affects.PROFILES)
        ours = self.content(*published)
        theirs = type(self).model_validate(before).content(*published)
        names = ours.keys() | theirs.keys()
        return sorted(name for name in names if ours.get(name) != theirs.get(name))

    def to_yaml(self) -> str:
        """The resolved config, with every default."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def content_of(
    *names: str | Affects, without: tuple[str, ...] = ()
) -> Callable[[Config], dict[str, Any]]:
    """``Config.content`` of these settings, for the declaration of a stage."""
    for name in (*names, *without):
        assert any(setting.is_in([name]) for setting in settings_in(Config)), f"no setting {name}"
    return lambda config: config.content(*names, without=without)
