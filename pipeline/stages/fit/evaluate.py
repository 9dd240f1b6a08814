"""evaluate: compare DEC with simpler clusterings by label-free measures on the same rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.artifacts.inputs import Manifest, Sample
from pipeline.artifacts.models import (
    Candidate,
    Comparison,
    InitialCentroids,
    ModelKind,
    PretrainedAutoencoder,
    RefinedModel,
    Scores,
    SpaceQuality,
)
from pipeline.artifacts.records import store_file
from pipeline.bill.costs import CostInputs, task_costs
from pipeline.bill.records import StageCosts
from pipeline.clustering.agreement import agreement
from pipeline.clustering.kmeans import kmeans, nearest_centroid
from pipeline.clustering.quality import (
    SILHOUETTE_ROWS,
    balance,
    contingency_of,
    macro_silhouette,
    nearest_neighbours,
    objective_ratio,
    separation,
    stability,
    stratified_rows,
)
from pipeline.config import MIN_SAMPLE_ROWS_PER_CLUSTER, Config, content_of
from pipeline.distributed.tasks import SAMPLE_IN_MEMORY, run_task
from pipeline.engine import Context, stage
from pipeline.errors import NumericalError
from pipeline.input.samples import sampled_classes, sampled_embeddings, sampled_held_out
from pipeline.model.generalisation import generalisation
from pipeline.registry.models import centroids_bytes, load_autoencoder, load_centroids, load_scaler
from pipeline.storage import Store

# Neighbours per row; few, since the nearest ones show where a cluster ends.
_NEIGHBOURS = 10
# Rows whose neighbours are searched: with 100,000 edges sampling noise is below 0.002.
_ASKED_ROWS = 10_000
# Where separation is equal to these decimals, the simpler method wins.
_DECIMALS = 2
# Rows of the sample that k-means is fitted to and neighbours are searched in, or 39 per cluster
# where that is more; all else is measured on all rows of the sample. Centroids hardly differ, and
# scaled features can be a hundred times as wide as the embeddings that init_centroids clusters.
_FIT_ROWS = 20_000
# Restarts of the stability measure, which compares fits and does not need the best one.
_STABILITY_RESTARTS = 5
# Multiplications that the restarts may take: about half a minute on two cores for each of the six
# fits of the stability measure, and as long as in init_centroids for the baseline.
_STABILITY_WORK = 10**12
# A label column with more classes than this is a key.
_MOST_CLASSES = 10_000


def _cost(run: CostInputs) -> StageCosts:
    """k-means on scaled features, six fits of the stability measure, neighbours, silhouettes."""
    rows, clusters, width = run.sample_rows, run.config.most_clusters, run.manifest.width
    fitted = min(rows, max(_FIT_ROWS, MIN_SAMPLE_ROWS_PER_CLUSTER * clusters))
    restarts = min(_STABILITY_RESTARTS, run.config.centroids.restarts)
    core_s = 2 * run.encode_s(rows) + run.kmeans_s(fitted, width)
    core_s += run.distance_s(min(fitted, _ASKED_ROWS), fitted, width)
    for space in (width, *[run.config.model.embedding] * 2):
        halves_s = 2 * run.kmeans_s(fitted // 2, space, work=_STABILITY_WORK, restarts=restarts)
        core_s += halves_s + 5 * run.distance_s(rows, clusters, space)
        core_s += 3 * run.distance_s(min(rows, SILHOUETTE_ROWS), SILHOUETTE_ROWS, space)
    return task_costs(run, core_s, reads=3)


@stage(
    "evaluate",
    version=3,
    settings=content_of("clusters", "centroids", "refine.alpha", "seed"),
    distributed=True,
    cost=_cost,
)
def evaluate(
    config: Config,
    context: Context,
    manifest: Manifest,
    sample: Sample,
    autoencoder: PretrainedAutoencoder,
    centroids: InitialCentroids,
    model: RefinedModel,
) -> Comparison:
    """Measure all candidates in one task, which holds the sample in all spaces."""
    return run_task(
        config.execution,
        SAMPLE_IN_MEMORY,
        _measure,
        *(config, context.lake, manifest, sample, centroids, model),
        context.stage_path("evaluate", "kmeans_centroids.parquet"),
    )


def _rounded(candidate: Candidate) -> float:
    return round(candidate.separation, _DECIMALS)


def margin_of(candidates: Sequence[Candidate]) -> float:
    """Lead of the first candidate over the second in separation, see ``Comparison.margin``."""
    first, second = map(_rounded, candidates[:2])
    return max(0.0, round(first - second, _DECIMALS))


def _measure(
    config: Config,
    lake: Store,
    manifest: Manifest,
    sample: Sample,
    centroids: InitialCentroids,
    model: RefinedModel,
    path: str,
) -> Comparison:
    spaces = _spaces(config, lake, manifest, sample, centroids, model)
    features = spaces["features"]
    first_KD = load_centroids(lake, centroids.kmeans).numpy()
    clusters = len(first_KD)
    fit_rows = _fit_rows(config, len(features), clusters)
    baseline = kmeans(
        features[fit_rows],
        clusters,
        restarts=config.centroids.restarts,
        iterations=config.centroids.iterations,
        seed=config.seed,
    )
    # Centroids of each, and the space they are in.
    partitions: dict[ModelKind, tuple[str, NDArray[np.float32]]] = {
        "kmeans": ("features", baseline.centroids_KD),
        "autoencoder": ("pretrained", first_KD),
    }
    if model.taught:
        taught_KD = load_centroids(lake, model.taught.centroids).numpy()
        partitions["merged"] = ("taught", taught_KD)
    partitions |= {
        "dec": ("refined", load_centroids(lake, model.centroids).numpy()),
    }
    near = nearest_neighbours(features[fit_rows], _ASKED_ROWS, _NEIGHBOURS)
    held_out = sampled_held_out(lake, sample.parts)
    classes = sampled_classes(lake, sample.parts, manifest.label) if manifest.label else None
    candidates = [
        _candidate(
            *(config, kind, clusters, nearest_centroid(spaces[own], its)),
            *(spaces, classes, near),
            centroids.merged.agreement[centroids.merged.rule]
            if kind in ("merged", "dec") and centroids.merged
            else _stability(config, spaces[own], clusters),
        )
        for kind, (own, its) in partitions.items()
    ]
    # The sort keeps the order of equals, and the simplest method comes first.
    candidates.sort(key=lambda c: (c.empty_clusters, -_rounded(c)))
    return Comparison(
        candidates=tuple(candidates),
        winner=candidates[0].kind,
        margin=margin_of(candidates),
        rows=sample.rows,
        held_out_rows=int(held_out.sum()),
        generalisation=generalisation(
            torch.from_numpy(spaces["refined"]),
            load_centroids(lake, model.centroids),
            torch.from_numpy(held_out),
            config.refine.alpha,
            config.refine.size_balance,
        ),
        centroids=store_file(lake, path, centroids_bytes(baseline.centroids_KD)),
        restarts=len(baseline.objectives),
    )


def _spaces(
    config: Config,
    lake: Store,
    manifest: Manifest,
    sample: Sample,
    centroids: InitialCentroids,
    model: RefinedModel,
) -> dict[str, NDArray[np.float32]]:
    """The sample in every space, shape (rows, dimensions) each."""
    weights = {"pretrained": centroids.weights}
    weights |= {"taught": model.taught.weights} if model.taught else {}
    encoders = {"features": nn.Sequential()} | {
        name: load_autoencoder(lake, file, config).encoder
        for name, file in {**weights, "refined": model.weights}.items()
    }
    scaler = load_scaler(lake, sample.scaler)
    spaces = sampled_embeddings(lake, sample, scaler, encoders)
    for name, setting in (("pretrained", "pretrain"), ("refined", "refine")):
        if not np.isfinite(spaces[name]).all():
            raise NumericalError(
                f"evaluate: {name} embeddings are not finite; lower {setting}.learning_rate"
            )
    return spaces


def _fit_rows(config: Config, rows: int, clusters: int) -> NDArray[np.int64]:
    """Rows that k-means is fitted to, drawn by seed, in random order."""
    most = max(_FIT_ROWS, MIN_SAMPLE_ROWS_PER_CLUSTER * clusters)
    return np.random.default_rng(config.seed).permutation(rows)[:most]


def _candidate(
    config: Config,
    kind: ModelKind,
    clusters: int,
    labels: NDArray[np.int64],
    spaces: dict[str, NDArray[np.float32]],
    classes: NDArray[np.int64] | None,
    near: NDArray[np.int64],
    stable: float | None,
) -> Candidate:
    cluster_rows = np.bincount(labels, minlength=clusters)
    drawn = stratified_rows(labels, clusters, config.seed)
    measured = tuple(
        SpaceQuality(
            space=name,
            silhouette=macro_silhouette(points[drawn], labels[drawn]),
            objective_ratio=objective_ratio(points, labels, clusters),
        )
        for name, points in spaces.items()
    )
    return Candidate(
        kind=kind,
        separation=separation(near, labels[_fit_rows(config, len(labels), clusters)], clusters),
        spaces=measured,
        balance=balance(cluster_rows),
        empty_clusters=int((cluster_rows == 0).sum()),
        stability=stable,
        scores=_scores(labels, classes),
    )


def _stability(config: Config, points: NDArray[np.float32], clusters: int) -> float | None:
    """ARI, on all rows of the sample, of k-means fitted to two disjoint random halves.

    Halves and restarts are the same for every candidate. For "kmeans" that is the whole method; for
    the others only the centroids are fitted again.
    """
    rows = _fit_rows(config, len(points), clusters)
    half = len(rows) // 2
    if half < clusters:
        return None
    first, second = (
        nearest_centroid(
            points,
            kmeans(
                points[half_of_them],
                clusters,
                restarts=min(_STABILITY_RESTARTS, config.centroids.restarts),
                iterations=config.centroids.iterations,
                seed=config.seed,
                work=_STABILITY_WORK,
            ).centroids_KD,
        )
        for half_of_them in (rows[:half], rows[half : 2 * half])
    )
    return stability(first, second)


def _scores(labels: NDArray[np.int64], classes: NDArray[np.int64] | None) -> Scores | None:
    if classes is None or classes.max(initial=0) >= _MOST_CLASSES:
        return None
    found = agreement(contingency_of(labels, classes))
    return Scores(acc=found.acc, nmi=found.nmi, ari=found.ari, rows=found.rows)
