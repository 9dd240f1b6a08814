"""Models as files: safetensors, Parquet and YAML. Nothing that is read back can run code."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor, nn

from pipeline.artifacts.inputs import FeatureColumn, Manifest
from pipeline.artifacts.models import ClusteringModel, ModelKind
from pipeline.artifacts.records import StoredFile, fingerprint_of
from pipeline.config import Config
from pipeline.engine import Context
from pipeline.errors import InputError
from pipeline.model.autoencoder import Autoencoder, freeze
from pipeline.model.channels import Channel, TypedScaler
from pipeline.model.clusters import Cells, ClusterModel
from pipeline.model.scaling import Scaler
from pipeline.schema import matrix_of, vectors
from pipeline.storage import Store, parquet_bytes, sha256, why

_BIAS = "decoder.{}.bias"
_TABLE = "encoder.0.tables.{}"  # name of a CategoryEmbedding's table among the weights
_SCALING_KEY = b"scaling"
_MEANS_KEY = b"means"  # of raw features; only where columns are typed


def weights_bytes(autoencoder: Autoencoder) -> bytes:
    """Encoder and decoder as a safetensors file."""
    return bytes(save({k: v.detach().contiguous() for k, v in autoencoder.state_dict().items()}))


def load_autoencoder(lake: Store, weights: StoredFile, config: Config) -> Autoencoder:
    """The autoencoder in a file, which says its widths itself."""
    state = load(lake.read_bytes(weights.path))
    names = itertools.takewhile(state.__contains__, map(_TABLE.format, itertools.count()))
    categories = [len(state[name]) for name in names]
    # Linear layers of the decoder, with an activation between two of them.
    biases = itertools.takewhile(state.__contains__, map(_BIAS.format, itertools.count(step=2)))
    *hidden, width = (len(state[name]) for name in biases)
    embedding = state["decoder.0.weight"].shape[1]
    autoencoder = Autoencoder(
        width,
        hidden[::-1],
        embedding,
        precision=config.model.precision,
        categories=categories,
    )
    autoencoder.load_state_dict(state)
    return autoencoder


def centroids_bytes(centroids_KD: NDArray[np.float32]) -> bytes:
    """Centroids as a Parquet file: cluster_id, centroid."""
    return cells_bytes(np.arange(len(centroids_KD)), centroids_KD)


def load_centroids(lake: Store, file: StoredFile) -> Tensor:
    """Centroids, shape (n_clusters, embedding), in the order of their ids."""
    return load_cells(lake, file).centroids_CD


def cells_bytes(cluster_C: NDArray[np.int64], centroids_CD: NDArray[np.float32]) -> bytes:
    """Merged cells as a Parquet file: cluster_id, centroid; more than one a cluster."""
    ids_C = cluster_C.astype(np.int32)
    return parquet_bytes(pa.table({"cluster_id": ids_C, "centroid": vectors(centroids_CD)}))


def load_cells(lake: Store, file: StoredFile, *, embedded: bool = True) -> Cells:
    """Merged cells of embeddings, or of scaled rows, in the order of their clusters."""
    table = lake.read_table(file.path).sort_by("cluster_id")
    cluster_C = torch.from_numpy(table["cluster_id"].to_numpy().astype(np.int64))
    centroids_CD = torch.from_numpy(matrix_of(table["centroid"]).copy())
    return Cells(centroids_CD, cluster_C, embedded=embedded)


def cluster_count(lake: Store, file: StoredFile) -> int:
    """K, the number of centroids in a file."""
    return int(lake.read_table(file.path, ["cluster_id"]).num_rows)


def feature_names(features: tuple[FeatureColumn, ...]) -> list[str]:
    """Name of each feature of a row: its column, and its index where the column is a vector."""
    return [
        f"{column.name}[{i}]" if column.vector else column.name
        for column in features
        for i in range(column.width)
    ]


def scaler_bytes(scaler: Scaler, features: tuple[FeatureColumn, ...]) -> bytes:
    """A scaler as a Parquet file: one row per feature, for typed columns one per channel."""
    names, metadata = feature_names(features), {_SCALING_KEY: str(scaler.mode)}
    if isinstance(scaler, TypedScaler):
        columns = {f.name: [getattr(c, f.name) for c in scaler.channels] for f in fields(Channel)}
        columns = {"column": [names[c.feature] for c in scaler.channels]} | columns
        metadata[_MEANS_KEY] = json.dumps(scaler.mean_F.tolist())
    else:
        scales = {n: getattr(scaler, f"{n}_F").numpy() for n in ("mean", "offset", "factor")}
        columns = {"feature": names} | scales
    return parquet_bytes(pa.table(columns).replace_schema_metadata(metadata))


def load_scaler(lake: Store, file: StoredFile) -> Scaler:
    """The scaler in a file."""
    table = lake.read_table(file.path)
    mode = table.schema.metadata[_SCALING_KEY].decode()
    if mean := table.schema.metadata.get(_MEANS_KEY):
        names = [field.name for field in fields(Channel)]
        channels = [Channel(**row) for row in table.select(names).to_pylist()]
        return TypedScaler(np.array(json.loads(mean), np.float64), channels)
    return Scaler(mode, *(table[name].to_numpy() for name in ("mean", "offset", "factor")))


def load_vocabulary(lake: Store, scaler: StoredFile) -> dict[str, dict[float, str]]:
    """The values that a model distinguishes in each category column, by their code in raw rows."""
    loaded = load_scaler(lake, scaler)
    if not isinstance(loaded, TypedScaler):
        return {}
    table = lake.read_table(scaler.path, ["column", "kind", "label", "code"])
    found: dict[str, dict[float, str]] = {}
    for row in table.to_pylist():
        if row["kind"] == "category":
            values = found.setdefault(row["column"], {})
            if math.isfinite(row["code"]):
                values[row["code"]] = row["label"]
    return found


def store_model(
    config: Config,
    context: Context,
    kind: ModelKind,
    *,
    weights: bytes | None,
    centroids: bytes,
    scaler: bytes,
    scaling: str,
) -> ClusteringModel:
    """Write a model's files into a folder of the lake that is named after their content."""
    parts = [sha256(content) for content in (weights, centroids, scaler) if content]
    model_id = "m-" + fingerprint_of([kind, *parts, config.refine.alpha])[:12]
    folder = f"models/{model_id}"
    context.lake.write_bytes(f"{folder}/config.yaml", config.to_yaml().encode())
    return ClusteringModel(
        model_id=model_id,
        kind=kind,
        weights=context.store(f"{folder}/weights.safetensors", weights) if weights else None,
        centroids=context.store(f"{folder}/centroids.parquet", centroids),
        scaler=context.store(f"{folder}/scaler.parquet", scaler),
        scaling=scaling,
    )


_METHODS: dict[ModelKind, str] = {
    "dec": "Deep Embedded Clustering (Xie, Girshick & Farhadi 2016)",
    "autoencoder": "An autoencoder, and k-means on its embeddings",
    "merged": "Merged cells of an autoencoder's embedding, which the encoder was taught",
    "kmeans": "k-means on scaled features",
}


def store_model_card(
    config: Config, context: Context, manifest: Manifest, model: ClusteringModel, facts: str
) -> None:
    """Write ``model_card.md`` beside a model's files; ``facts`` are Markdown on how it was made."""
    columns = ", ".join(
        f"`{c.name}` (vector of {c.width})"
        if c.vector
        else f"`{c.name}`" + (f" ({c.type})" if c.type else "")
        for c in manifest.features
    )
    encoder = "No encoder: centroids are scaled features"
    if model.weights:
        layers = load_autoencoder(context.lake, model.weights, config).widths
        encoder = f"Encoder {'-'.join(map(str, layers))}"
    if bad := manifest.quarantined:
        facts += (
            f"- {len(bad)} bad shards were left out: {', '.join(f'`{s.name}`' for s in bad[:5])}"
        )
        facts += ", and others.\n" if len(bad) > 5 else ".\n"
    weights = "`weights.safetensors` (encoder and decoder), " if model.weights else ""
    scaled = "a channel of what the network sees" if manifest.typed else "a feature"
    text = f"""# Model {model.model_id}

{_METHODS[model.kind]}, into {cluster_count(context.lake, model.centroids)} clusters.

- Fitted by run `{context.run_id}` for ds `{context.ds}`.
- Features, in this order: {columns}. Scaling: {config.source.scaling}.
- {encoder}.
{facts.strip()}

Files: {weights}`centroids.parquet` (cluster_id, centroid),
`scaler.parquet` (one row {scaled}: scaled = (x - offset) * factor), `config.yaml`.
"""
    context.lake.write_bytes(f"models/{model.model_id}/model_card.md", text.encode())


def settings_path(model: ClusteringModel) -> str:
    """Path, below the output, of the settings that a model was fitted with."""
    return f"models/{model.model_id}/config.yaml"


def settings_of(lake: Store, model: ClusteringModel) -> Config:
    """The settings that a model was fitted with.

    Raises:
        InputError: They are missing, or this version cannot read them.
    """
    path = settings_path(model)
    try:
        return Config.model_validate(yaml.safe_load(lake.read_bytes(path)))
    except (FileNotFoundError, ValueError, yaml.YAMLError) as error:  # of pydantic, too
        raise InputError(
            f"{lake.locate(path)} does not hold the settings of model {model.model_id}: "
            f"{why(error)}; a model cannot be loaded without them"
        ) from None


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, ready to label rows."""

    scaler: Scaler
    clusters: ClusterModel


def load_model(
    lake: Store,
    model: ClusteringModel,
    config: Config,
    device: torch.device | None = None,
) -> LoadedModel:
    """A model of any kind, for inference.

    ``config`` are the settings that it was fitted with.
    """
    encoder: nn.Module = nn.Sequential()  # leaves scaled features as they are
    if model.weights is not None:
        encoder = load_autoencoder(lake, model.weights, config).encoder
    clusters = ClusterModel(encoder, load_centroids(lake, model.centroids), config.refine.alpha)
    clusters, scaler = clusters.to(device), load_scaler(lake, model.scaler).to(device)
    freeze(clusters)  # in the precision that is fast there
    return LoadedModel(scaler, clusters)
