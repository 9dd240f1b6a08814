"""Fit of a sample in memory in one process: the pipeline's own model, without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.clustering.first_clusters import FirstClusters, find_first_clusters
from pipeline.config import Config, sized
from pipeline.model.augmentation import augmentation_of
from pipeline.model.autoencoder import Autoencoder
from pipeline.model.channels import TypedScaler
from pipeline.model.clusters import Cells, ClusterModel
from pipeline.model.devices import embeddings
from pipeline.model.pretraining import Pretraining
from pipeline.model.refinement import Refinement
from pipeline.model.scaling import Moments, Scaler


class RowsInMemory:
    """Raw rows, shape (rows, features), in a seeded order per pass (a ``TrainingRows``)."""

    def __init__(self, x_NF: Tensor, seed: int) -> None:
        self._x_NF, self._seed = x_NF, seed
        self.total_rows, self.features = x_NF.shape

    def batches(self, pass_number: int, batch_rows: int, *, shuffled: bool) -> Iterator[Tensor]:
        """Every row once, shape (≤ batch_rows, features)."""
        if not shuffled:
            yield from torch.split(self._x_NF, batch_rows)
            return
        random = np.random.default_rng([self._seed, pass_number])
        order_N = torch.from_numpy(random.permutation(self.total_rows))
        for some_B in torch.split(order_N, batch_rows):
            yield self._x_NF[some_B]


@dataclass(frozen=True)
class Fit:
    """A fitted model."""

    encoder: torch.nn.Module
    scaler: Scaler
    centroids_KD: Tensor

    @torch.no_grad()
    def embedded(self, x_NF: Tensor) -> Tensor:
        """Embeddings of raw rows, shape (rows, embedding)."""
        return embeddings(self.encoder, self.scaler, x_NF).float().cpu()


def fit(
    config: Config,
    x_NF: NDArray[np.generic],
    widths: Sequence[int],
    device: torch.device | None = None,
    typed: TypedScaler | None = None,
) -> Fit:
    """Fit scaler, autoencoder, k-means and DEC as the stages of a run do, on these raw rows alone.

    ``widths`` are those of the columns; ``typed`` is the scaler of typed columns, with the
    vocabulary of the whole sample.

    Raises:
        NumericalError: A training diverged, or ended without a partition.
    """
    scaler = typed or Scaler.fit(config.source.scaling, Moments.of(x_NF), widths)
    x = torch.from_numpy(np.array(x_NF))  # a copy: Arrow's memory is read-only
    rows = RowsInMemory(x, config.seed)
    augmentation = augmentation_of(config.augment, config.source.image_shape)
    model = sized(config, x.shape[1], len(x)).model
    autoencoder = Autoencoder(
        scaler.width,
        model.widths,
        model.embedding,
        config.seed,
        precision=model.precision,
        categories=scaler.categories,
    ).to(device)
    pretraining = Pretraining(
        autoencoder, scaler, config.pretrain, config.seed, augmentation=augmentation
    )
    for _ in pretraining.run(rows):
        pass
    with torch.no_grad():
        z_ND = embeddings(autoencoder.encoder, scaler, x).float().cpu().numpy()
    first = find_first_clusters(config, z_ND, scaler(x).numpy())
    autoencoder.transform_embedding(torch.from_numpy(first.transform_DD))
    centroids_KD = torch.from_numpy(first.centroids_KD)
    refinement = Refinement(
        ClusterModel(autoencoder.encoder, centroids_KD, config.refine.alpha).to(device),
        scaler,
        config.refine,
        cells=_cells(first, device),
        decoder=autoencoder.decoder,
        augmentation=augmentation,
        reference=lambda: x,
        seed=config.seed,
    )
    for _ in refinement.run(rows):
        pass
    return Fit(
        encoder=refinement.model.encoder.requires_grad_(False),
        scaler=refinement.scaler,
        centroids_KD=refinement.model.centroids_KD.detach().float().cpu(),
    )


def _cells(first: FirstClusters, device: torch.device | None) -> Cells | None:
    if first.merged is None:
        return None
    cells = torch.from_numpy(first.merged.cells_CD), torch.from_numpy(first.merged.cluster_C)
    return Cells(*cells, embedded=first.merged.space == "embeddings").to(device)
