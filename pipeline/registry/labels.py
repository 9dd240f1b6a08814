"""Label rows in memory with a model: nearest cluster, runner-up and their confidences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.artifacts.inputs import Sample
from pipeline.errors import NumericalError
from pipeline.input.samples import feature_parts
from pipeline.model.dec import nearest_two
from pipeline.model.devices import embeddings
from pipeline.registry.models import LoadedModel
from pipeline.storage import Store

_ROWS_AT_A_TIME = 2048


@torch.inference_mode()
def assignments_of(model: LoadedModel, x_BF: Tensor) -> dict[str, Any]:
    """The nearest cluster and the runner-up of each raw row of ``x_BF``, shape (rows, features).

    Returns:
        cluster_id and cluster_id_2, int32; confidence and confidence_2, their q (Xie et al. 2016,
        eq. 1), float32; distance to the nearest centroid, float32; shape (rows,) each.

    Raises:
        NumericalError: An embedding is not finite.
    """
    clusters = model.clusters
    z_BD = embeddings(clusters.encoder, model.scaler, x_BF)
    found = nearest_two(z_BD, clusters.centroids_KD, clusters.alpha)
    if not torch.isfinite(found.distance_B).all():
        raise NumericalError(
            "assign: embeddings are not finite; look for extreme values in the features"
        )
    ids_2B = found.clusters_B2.T.to(torch.int32).contiguous().cpu()
    q_2B = found.q_B2.T.contiguous().cpu()
    return {
        "cluster_id": ids_2B[0].numpy(),
        "confidence": q_2B[0].numpy(),
        "cluster_id_2": ids_2B[1].numpy(),
        "confidence_2": q_2B[1].numpy(),
        "distance": found.distance_B.cpu().numpy(),
    }


def sample_assignments(
    lake: Store, model: LoadedModel, sample: Sample, *, every: int = 1
) -> Iterator[tuple[NDArray[Any], dict[str, Any]]]:
    """Raw rows, every n-th of a sample, and their assignments (``assignments_of``), some at a time.

    Raises:
        FileNotFoundError: The sample is gone.
        NumericalError: An embedding is not finite.
    """
    first = 0
    for part in feature_parts(lake, sample.parts):
        part, first = part[first::every], (first - len(part)) % every
        for start in range(0, len(part), _ROWS_AT_A_TIME):
            # A copy: Arrow's memory is read-only, and torch warns of that.
            x_BF = np.array(part[start : start + _ROWS_AT_A_TIME])
            yield x_BF, assignments_of(model, torch.from_numpy(x_BF))
