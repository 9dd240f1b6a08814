"""Sections of the nights: schedule, assignment, cluster identity, and the gate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.sections import Affects, DefaultVersion, PositiveInt, Section


class Refit(Section, affects=Affects.NIGHTS):
    """Schedule of refits: new models, from scratch."""

    every_days: PositiveInt | None = 7
    """Days between the last refit's logical date and the next; null = never by age."""
    on_drift: bool = True
    """Whether to refit when a feature of last night's rows had a PSI above `gate.max_psi`."""


class Refresh(Section, affects=Affects.NIGHTS):
    """Schedule of refreshes: a few more passes, from the champion's encoder and centroids."""

    every_days: PositiveInt | None = None
    """Days between the champion's logical date and the next refresh; null = never."""
    passes: PositiveInt = 3
    """Maximum number of refinement passes of a refresh."""


class Schedule(Section, affects=Affects.NIGHTS):
    """Schedule of fits; on all other nights the champion labels the rows."""

    refit: Refit = Refit()
    refresh: Refresh = Refresh()
    retry_days: PositiveInt = 1
    """Days between a refused challenger and the next fit."""


class Outliers(Section, affects=Affects.NIGHTS):
    """Rule for rows that belong to no cluster."""

    rule: Literal["distance"] = "distance"
    """Rule for outliers; distance: rows farther from their centroid than a quantile of the
    reference sample."""
    quantile: float = Field(0.999, gt=0.5, lt=1)
    """Quantile of the reference sample's distances, for each cluster."""


class Assign(Section, affects=Affects.NIGHTS):
    """Labelling of rows in nights."""

    incremental: bool = True
    """Whether to reuse the results of shards that did not change since the same model labelled
    them; only with `lake.format: parquet`."""
    outliers: Outliers | None = None
    """Rule for rows that get cluster id -1; null = no outliers."""


class Matching(Section, affects=Affects.NIGHTS):
    """Thresholds for cluster ids: which cluster of a new model keeps the id of a known one."""

    survives: float = Field(0.5, gt=0, le=1)
    """Minimum overlap for an id to survive: share of the old cluster's rows in the new one, or of
    the new one's rows that come from the old; see decision 0023."""
    splits: float = Field(0.2, gt=0, le=1)
    """Minimum share of an old cluster's rows in a new cluster that counts as a split."""
    dies: float = Field(0.25, ge=0, lt=1)
    """Minimum share of its former rows that keeps an old cluster alive, and that makes a new
    cluster a known one and not born."""


class Gate(Section, affects=Affects.NIGHTS):
    """Limits for a challenger that is to replace the champion; null turns a rule off."""

    max_quality_loss: float | None = Field(0.05, ge=0)
    """Maximum loss of silhouette against the champion, averaged over both embeddings: on the
    champion's reference sample or on tonight's, whichever is smaller."""
    max_churn: float | None = Field(0.5, ge=0, le=1)
    """Maximum share of the reference sample whose cluster id changes."""
    max_cluster_share: float | None = Field(0.9, gt=0, le=1)
    """Maximum share of the rows in the largest cluster."""
    max_empty_share: float | None = Field(0.2, ge=0, le=1)
    """Maximum share of the clusters without any row of the sample."""
    max_psi: float | None = Field(0.25, ge=0)
    """Maximum population stability index (PSI) of any feature against the champion's reference
    sample."""
    max_row_change: float | None = Field(0.5, ge=0)
    """Maximum relative change of the row count since last night."""
    max_bad_shards: float | None = Field(0.05, ge=0, le=1)
    """Maximum share of the shards that are left out."""
    max_worse_than_kmeans: Annotated[float | None, DefaultVersion(2)] = Field(0.05, ge=0)
    """Maximum loss of separation against plain k-means on the same sample."""
