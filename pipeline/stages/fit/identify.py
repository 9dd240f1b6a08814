"""identify: permanent ids of a new model's clusters, matched to the champion's."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.artifacts.inputs import Manifest, Sample
from pipeline.artifacts.models import ClusteringModel
from pipeline.artifacts.nights import Champion, Identity, NightDecision, Reference
from pipeline.artifacts.records import fingerprint_of
from pipeline.bill.costs import CostInputs, task_costs
from pipeline.bill.records import StageCosts
from pipeline.clustering.drift import bin_counts, bin_edges
from pipeline.clustering.matching import (
    MERGE,
    SPLIT,
    SURVIVAL,
    Labels,
    Matched,
    match,
    unchanged,
    unmatched,
)
from pipeline.config import Affects, Config, content_of
from pipeline.distributed.tasks import SAMPLE_IN_MEMORY, run_task
from pipeline.engine import Context, stage
from pipeline.input.samples import feature_parts, sampled_features
from pipeline.registry.cluster_ids import ClusterIds
from pipeline.registry.clusters import (
    ClusterObservation,
    clusters_table,
    keys_as_json,
    lists_of,
    living,
    next_id,
    store_content,
    store_table,
    transitions_table,
)
from pipeline.registry.entries import CLUSTER_SCHEMA, read_entry
from pipeline.registry.labels import sample_assignments
from pipeline.registry.models import LoadedModel, load_model, settings_of
from pipeline.registry.reference import bins_bytes
from pipeline.schema import SHARD_KEY_COLUMNS
from pipeline.storage import Store

log = logging.getLogger(__name__)

# Exemplars per cluster: enough to see what it contains, few enough to show in a table.
_EXEMPLARS = 5


def _cost(run: CostInputs) -> StageCosts:
    """Two models label two samples."""
    row_s = run.encode_s(1) + run.config.most_clusters * run.core.nearest_ns * 1e-9
    return task_costs(run, 4 * run.sample_rows * row_s, reads=6, puts=5)


@stage(
    "identify",
    version=1,
    settings=content_of("matching", "assign.outliers", Affects.MODEL),
    distributed=True,
    cost=_cost,
)
def identify(
    config: Config,
    context: Context,
    decision: NightDecision,
    manifest: Manifest,
    sample: Sample,
    model: ClusteringModel,
) -> Identity:
    """Label two samples with both models, and match clusters by their rows; see decision 0023.

    Files lie beside the registry's log, named by their content; no entry refers to them before the
    challenger is promoted.
    """
    found = run_task(
        config.execution,
        SAMPLE_IN_MEMORY,
        _identify,
        *(config, context.lake, decision, manifest, sample, model),
        ds=context.ds,
        run_id=context.run_id,
    )
    log.info(
        "clusters: %d survive, %d split, %d are merged, %d are born, %d die; churn %s",
        *(found.survived, found.split, found.merged, found.born, found.died),
        "unknown" if found.churn is None else f"{found.churn:.4f}",
    )
    return found


@dataclass(frozen=True)
class _Nearest:
    """The cluster of each row of a sample, by position, and its distance in the embedding."""

    labels_N: NDArray[np.int64]
    distance_N: NDArray[np.float32]


def _identify(
    config: Config,
    lake: Store,
    decision: NightDecision,
    manifest: Manifest,
    sample: Sample,
    model: ClusteringModel,
    *,
    ds: str,
    run_id: str,
) -> Identity:
    before = read_entry(lake, decision.entry).clusters if decision.entry else None
    clusters = lake.read_table(before.path) if before else CLUSTER_SCHEMA.empty_table()
    first_free = next_id(clusters)
    new = load_model(lake, model, config)
    tonight = _nearest(lake, new, sample)
    centroids_KD = new.clusters.centroids_KD.detach().numpy()
    size_K = np.bincount(tonight.labels_N, minlength=len(centroids_KD))
    alive = living(clusters)
    alive_J = alive["cluster_id"].to_numpy()
    champion = decision.champion if decision.usable else None
    if champion is None:
        matched = unmatched(alive_J, alive["size"].to_numpy(), size_K, first_free)
    else:
        matched = _matched(config, lake, champion, model, new, sample, tonight, first_free)
    seen = ClusterObservation(
        model.model_id, size_K, centroids_KD, _exemplars(lake, manifest, sample, tonight, size_K)
    )
    survived, split, merged = (matched.transitions.of(k) for k in (SURVIVAL, SPLIT, MERGE))
    most_K = np.full(len(matched.ids_K), np.inf, np.float32)
    if config.assign.outliers is not None:
        most_K = _quantiles(tonight, len(most_K), config.assign.outliers.quantile)
    firmness_K = np.array(model.firmness, np.float32) if model.firmness else None
    refreshed = decision.champion if decision.action == "refresh" else None
    challenger = Champion(
        model=model,
        run_id=run_id,
        ds=ds,
        refit_ds=refreshed.refit_ds if refreshed else ds,
        ids=store_table(lake, "ids", ClusterIds(matched.ids_K, most_K, firmness_K).table()),
        reference=Reference(
            sample=sample,
            features=manifest.features,
            bins=store_content(lake, "bins", _bins(lake, manifest, sample)),
        ),
        # A refresh has settings of its own; what counts is what the refit before it had.
        settings=refreshed.settings if refreshed else fingerprint_of(config.fit_settings()),
    )
    return Identity(
        challenger=challenger,
        clusters=store_table(lake, "clusters", clusters_table(clusters, seen, matched, ds)),
        transitions=store_table(
            lake, "transitions", transitions_table(matched.transitions, ds, run_id)
        ),
        survived=int(survived.sum()),
        split=len(np.unique(matched.transitions.from_id[split])),
        merged=int(merged.sum()),
        born=int(matched.born_K.sum()),
        died=int((~np.isin(alive_J, matched.ids_K)).sum()),
        churn=matched.churn if champion else None,
    )


def _matched(
    config: Config,
    lake: Store,
    champion: Champion,
    model: ClusteringModel,
    new: LoadedModel,
    sample: Sample,
    tonight: _Nearest,
    first_free: int,
) -> Matched:
    """Match the clusters of a new model to those of the champion, on both samples."""
    old = load_model(lake, champion.model, settings_of(lake, champion.model))
    ids_J = lake.read_table(champion.ids.path).sort_by("position")["cluster_id"].to_numpy()
    now = Labels(_nearest(lake, old, sample).labels_N, tonight.labels_N)
    try:
        frozen = champion.reference.sample
        reference = Labels(*(_nearest(lake, m, frozen).labels_N for m in (old, new)))
    except FileNotFoundError as error:
        # Matching on tonight's rows is better than a night that fails.
        log.warning(
            "the reference sample of champion %s is gone (%s): its clusters are matched on "
            "tonight's sample alone",
            *(champion.model.model_id, error),
        )
        reference = now
    if champion.model.model_id == model.model_id:
        return unchanged(reference, now, ids_J)
    clusters = len(new.clusters.centroids_KD)
    return match(reference, now, ids_J, clusters, first_free, config.matching)


def _nearest(lake: Store, model: LoadedModel, sample: Sample) -> _Nearest:
    """The cluster of each row of a sample, as ``assign`` would find it."""
    labels, distances = [], []
    for _, found in sample_assignments(lake, model, sample):
        labels.append(found["cluster_id"].astype(np.int64))
        distances.append(found["distance"])
    return _Nearest(np.concatenate(labels), np.concatenate(distances))


def _quantiles(sample: _Nearest, clusters: int, quantile: float) -> NDArray[np.float32]:
    """A quantile of the distances in each cluster, shape (n_clusters,); infinite in empty ones.

    It is rounded up to a distance that occurs: in a cluster of fewer than 1 / (1 - quantile) rows
    to the largest, so that no row is an outlier.
    """
    order = np.lexsort((sample.distance_N, sample.labels_N))
    rows_K = np.bincount(sample.labels_N, minlength=clusters)
    first_K = np.cumsum(rows_K) - rows_K
    place_K = first_K + np.ceil(quantile * np.maximum(rows_K - 1, 0)).astype(np.int64)
    most_K = np.full(clusters, np.inf, np.float32)
    used_K = rows_K > 0
    most_K[used_K] = sample.distance_N[order[place_K[used_K]]]
    return most_K


def _exemplars(
    lake: Store, manifest: Manifest, sample: Sample, tonight: _Nearest, size_K: NDArray[np.int64]
) -> pa.ListArray:
    """Keys of the rows nearest to each centroid, nearest first."""
    order = np.lexsort((tonight.distance_N, tonight.labels_N))
    first_K = np.cumsum(size_K) - size_K
    near = order[np.arange(len(order)) - np.repeat(first_K, size_K) < _EXEMPLARS]
    names = list(manifest.keys or SHARD_KEY_COLUMNS)
    parts = [lake.read_table(part.path, names) for part in sample.parts]
    return lists_of(
        keys_as_json(pa.concat_tables(parts).take(near)), np.minimum(size_K, _EXEMPLARS)
    )


def _bins(lake: Store, manifest: Manifest, sample: Sample) -> bytes:
    """See ``Reference.bins``. A timestamp has one bin: following the date is no drift."""
    edges_FB = bin_edges(sampled_features(lake, sample.parts))
    types_F = [column.type for column in manifest.features for _ in range(column.width)]
    edges_FB[np.array([kind == "timestamp" for kind in types_F])] = np.inf
    counts = [bin_counts(x_BF, edges_FB) for x_BF in feature_parts(lake, sample.parts)]
    rows_FB = np.sum(counts, axis=0)
    return bins_bytes(edges_FB, rows_FB)
