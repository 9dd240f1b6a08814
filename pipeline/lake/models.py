"""Models as files: safetensors, Parquet and YAML. Nothing that is read back can run code."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor, nn

from pipeline.artifacts import ClusteringModel, FeatureColumn, StoredFile
from pipeline.config import Config
from pipeline.model.autoencoder import Autoencoder
from pipeline.model.refinement import ClusterModel
from pipeline.model.scaling import Scaler
from pipeline.storage import Store, parquet_bytes

_SCALING_KEY = b"scaling"


def weights_bytes(autoencoder: Autoencoder) -> bytes:
    """Encoder and decoder as a safetensors file."""
    return bytes(save({k: v.detach().contiguous() for k, v in autoencoder.state_dict().items()}))


def load_autoencoder(lake: Store, weights: StoredFile, config: Config, width: int) -> Autoencoder:
    """The autoencoder of a run; ``width`` is F, the features of a row."""
    autoencoder = Autoencoder(width, config.model.hidden, config.model.embedding)
    autoencoder.load_state_dict(load(lake.read_bytes(weights.path)))
    return autoencoder


def centroids_bytes(centroids_KD: NDArray[np.float32]) -> bytes:
    """Centroids as a Parquet file: cluster_id, centroid."""
    return parquet_bytes(
        pa.table(
            {
                "cluster_id": np.arange(len(centroids_KD), dtype=np.int32),
                "centroid": pa.FixedSizeListArray.from_arrays(
                    np.ascontiguousarray(centroids_KD).ravel(), centroids_KD.shape[1]
                ),
            }
        )
    )


def load_centroids(lake: Store, file: StoredFile) -> Tensor:
    """Centroids, shape (n_clusters, embedding), in the order of their ids."""
    column = lake.read_table(file.path).sort_by("cluster_id")["centroid"].combine_chunks()
    flat = column.flatten().to_numpy()
    return torch.from_numpy(flat.reshape(len(column), -1).copy())


def scaler_bytes(scaler: Scaler, features: tuple[FeatureColumn, ...]) -> bytes:
    """A scaler as a Parquet file: one row a feature."""
    names = [
        f"{column.name}[{i}]" if column.vector else column.name
        for column in features
        for i in range(column.width)
    ]
    table = pa.table(
        {
            "feature": names,
            "mean": scaler.mean_F.numpy(),
            "offset": scaler.offset_F.numpy(),
            "factor": scaler.factor_F.numpy(),
        }
    )
    return parquet_bytes(table.replace_schema_metadata({_SCALING_KEY: scaler.mode}))


def load_scaler(lake: Store, file: StoredFile) -> Scaler:
    """The scaler in a file."""
    table = lake.read_table(file.path)
    mode = table.schema.metadata[_SCALING_KEY].decode()
    return Scaler(mode, *(table[name].to_numpy() for name in ("mean", "offset", "factor")))


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to assign rows."""

    scaler: Scaler
    clusters: ClusterModel


def load_model(lake: Store, model: ClusteringModel, config: Config, width: int) -> LoadedModel:
    """A model of any kind from its files; ``width`` is F, the features of a row."""
    encoder: nn.Module = nn.Sequential()  # leaves scaled features as they are
    if model.weights is not None:
        encoder = load_autoencoder(lake, model.weights, config, width).encoder
    clusters = ClusterModel(encoder, load_centroids(lake, model.centroids), config.refine.alpha)
    return LoadedModel(load_scaler(lake, model.scaler), clusters.requires_grad_(False))
