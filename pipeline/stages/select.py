"""select: which of the compared clusterings is shipped, and its model."""

from __future__ import annotations

from typing import Any

from pipeline.artifacts import (
    ClusteringModel,
    Comparison,
    InitialCentroids,
    Manifest,
    PretrainedAutoencoder,
    RefinedModel,
    Sample,
    StoredFile,
    fingerprint_of,
)
from pipeline.config import Config
from pipeline.engine import Context, stage


def _settings(config: Config) -> Any:
    return {"select": config.refine.select, "alpha": config.refine.alpha}


@stage("select", version=1, settings=_settings, distributed=False)
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
    """DEC's model, or under ``refine.select: auto`` that of the winner."""
    kind = comparison.winner if config.refine.select == "auto" else "dec"
    if kind == "dec":
        return ClusteringModel(**{n: getattr(model, n) for n in ClusteringModel.model_fields})
    weights = autoencoder.weights if kind == "autoencoder" else None
    centers = centroids.centroids if kind == "autoencoder" else comparison.centroids
    digests = [file.sha256 for file in (weights, centers, sample.scaler) if file]
    model_id = "m-" + fingerprint_of([kind, *digests, config.refine.alpha])[:12]

    def copy_of(file: StoredFile, name: str) -> StoredFile:
        content = context.lake.read_bytes(file.path)
        return context.store(f"models/{model_id}/{name}", content)

    shipped = ClusteringModel(
        model_id=model_id,
        kind=kind,
        weights=copy_of(weights, "weights.safetensors") if weights else None,
        centroids=copy_of(centers, "centroids.parquet"),
        scaler=copy_of(sample.scaler, "scaler.parquet"),
        scaling=sample.scaling,
    )
    folder = f"models/{model_id}"
    context.lake.write_bytes(f"{folder}/config.yaml", config.to_yaml().encode())
    context.lake.write_bytes(
        f"{folder}/model_card.md", _card(config, context, manifest, shipped, comparison)
    )
    return shipped


_METHODS = {
    "kmeans": "k-means on scaled features",
    "autoencoder": "An autoencoder, and k-means on its embeddings",
}


def _card(
    config: Config,
    context: Context,
    manifest: Manifest,
    model: ClusteringModel,
    comparison: Comparison,
) -> bytes:
    columns = ", ".join(
        f"`{c.name}` (vector of {c.width})" if c.vector else f"`{c.name}`"
        for c in manifest.features
    )
    encoder = "None: centroids lie among the scaled features."
    weights = ""
    if model.weights:
        layers = "-".join(map(str, (manifest.width, *config.model.hidden, config.model.embedding)))
        encoder = f"Encoder {layers}, as pretrained."
        weights = "`weights.safetensors` (encoder and decoder), "
    rows = "".join(
        f"| {c.kind} | {c.silhouette:.4f} | {c.balance:.4f} | {c.empty_clusters} |\n"
        for c in comparison.candidates
    )
    judges = " and ".join(comparison.judges)
    return f"""# Model {model.model_id}

{_METHODS[model.kind]}, into {config.clusters} clusters.

- Fitted by run `{context.run_id}` for ds `{context.ds}`.
- Features, in this order: {columns}. Scaling: {model.scaling}.
- {encoder}
- Shipped instead of Deep Embedded Clustering because `refine.select` is auto and it won the
  comparison on {comparison.rows:,} sampled rows:

| clustering | silhouette, mean of {judges} | balance | empty clusters |
|---|---|---|---|
{rows}
Files: {weights}`centroids.parquet` (cluster_id, centroid),
`scaler.parquet` (one row a feature: scaled = (x - offset) * factor), `config.yaml`.
""".encode()
