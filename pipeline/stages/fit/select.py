"""select: choose the model that the run ships."""

from __future__ import annotations

from pipeline.artifacts.inputs import Manifest, Sample
from pipeline.artifacts.models import (
    ClusteringModel,
    Comparison,
    InitialCentroids,
    PretrainedAutoencoder,
    RefinedModel,
)
from pipeline.artifacts.records import StoredFile
from pipeline.config import Config, content_of
from pipeline.engine import Context, stage
from pipeline.input.quarantine import with_quarantine
from pipeline.registry.models import store_model, store_model_card


@stage("select", version=4, settings=content_of("refine.select", "refine.alpha"), distributed=False)
def select(
    config: Config,
    context: Context,
    manifest: Manifest,
    sample: Sample,
    autoencoder: PretrainedAutoencoder,
    centroids: InitialCentroids,
    model: RefinedModel,
    comparison: Comparison,
) -> ClusteringModel:
    """DEC's model, or the winner of the comparison where ``refine.select`` is auto."""
    kind = comparison.winner if config.refine.select == "auto" else "dec"
    if kind == "dec":
        return ClusteringModel(**{n: getattr(model, n) for n in ClusteringModel.model_fields})
    weights: StoredFile | None = None
    centers, lake = comparison.centroids, context.lake
    if kind == "autoencoder":
        weights, centers = centroids.weights, centroids.kmeans
    elif kind == "merged":
        assert model.taught is not None
        weights, centers = model.taught.weights, model.taught.centroids
    shipped = store_model(
        config,
        context,
        kind,
        weights=lake.read_bytes(weights.path) if weights else None,
        centroids=lake.read_bytes(centers.path),
        scaler=lake.read_bytes(sample.scaler.path),
        scaling=sample.scaling,
    )
    manifest = with_quarantine(config, context, manifest)
    store_model_card(config, context, manifest, shipped, _facts(comparison))
    return shipped.model_copy(update={"firmness": model.firmness if kind == "merged" else ()})


def _facts(comparison: Comparison) -> str:
    rows = "".join(
        f"| {c.kind} | {c.separation:.2f} | {c.balance:.4f} | {c.empty_clusters} |\n"
        for c in comparison.candidates
    )
    return f"""
- Shipped instead of Deep Embedded Clustering because `refine.select` is auto and it won the
  comparison on {comparison.rows:,} sampled rows:

| clustering | separation, neighbours in scaled features | balance | empty clusters |
|---|---|---|---|
{rows}"""
