"""Measures of a trial, without labels and in a space that does not depend on the trial.

A fit looks best in its own embedding, and every trial has another one; so trials are judged in the
space of the scaled features, the same for all whatever scaling they try. See decisions 0007 and
0030.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.artifacts.records import Record
from pipeline.clustering.agreement import agreement
from pipeline.clustering.kmeans import nearest_centroid
from pipeline.clustering.quality import (
    contingency_of,
    macro_silhouette,
    modularity,
    nearest_neighbours,
    stability,
    stratified_rows,
)
from pipeline.config import Config
from pipeline.model.channels import TypedScaler
from pipeline.model.generalisation import generalisation
from pipeline.model.scaling import Moments, Scaler
from pipeline.tuning.fitting import fit

# As in the stage that compares DEC with its baselines.
_NEIGHBOURS = 10
_ASKED_ROWS = 10_000


class Measures(Record):
    """Measures of a trial: means over its two fits, each on a half of the sample."""

    # ARI of the two fits' partitions of the whole sample; 1 where they are the same.
    stability: float
    # Modularity on the neighbour graph of the common space; see ``clustering.quality``.
    modularity: float
    modularity_error: float
    silhouette: float  # macro-averaged silhouette in the common space
    silhouette_error: float
    # KL on the half that a fit was trained on / KL on the other half: near 1 where it has learnt,
    # small where it has memorised; None where a half has no KL left.
    generalisation: float | None
    empty_clusters: int  # number of clusters without a row, in the worse of the fits
    smallest_share: float  # share of the rows in the smallest cluster of both fits
    largest_share: float  # share of the rows in the largest cluster of both fits
    # Agreement with the label column, for information alone; None without one.
    nmi: float | None = None


@dataclass(frozen=True)
class TuningRows:
    """The rows of a tuning, and the common space in which all trials are judged."""

    x_NF: NDArray[np.generic]
    widths: tuple[int, ...]
    space_NF: NDArray[np.float32]  # the same rows in the common space, float32
    near_QM: NDArray[np.int64]  # nearest neighbours there; see ``nearest_neighbours``
    # Random order of the rows: the first half is for the first fit, the rest for the second.
    order_N: NDArray[np.int64]
    # True classes, for scoring alone; None where they are unknown.
    classes_N: NDArray[np.int64] | None = None
    # Scaler of typed columns for the network's input; None where there are none.
    typed: TypedScaler | None = None

    @classmethod
    def of(
        cls,
        x_NF: NDArray[np.generic],
        widths: Sequence[int],
        scaling: Scaler | None = None,
        *,
        seed: int,
        classes_N: NDArray[np.int64] | None = None,
    ) -> TuningRows:
        """Prepare rows for any number of trials.

        ``scaling`` leads from raw rows to the common space, without one every column to variance 1;
        classes are −1 where unknown.
        """
        scaling = scaling or Scaler.fit("standard", Moments.of(x_NF), widths)
        order_N = np.random.default_rng(seed).permutation(len(x_NF))
        x_NF, classes_N = x_NF[order_N], None if classes_N is None else classes_N[order_N]
        space_NF = scaling(torch.from_numpy(np.array(x_NF))).numpy()
        return cls(
            x_NF=x_NF,
            widths=tuple(widths),
            space_NF=space_NF,
            near_QM=nearest_neighbours(space_NF, _ASKED_ROWS, _NEIGHBOURS),
            order_N=order_N,
            classes_N=classes_N,
            typed=scaling if isinstance(scaling, TypedScaler) else None,
        )

    @property
    def halves(self) -> tuple[slice, slice]:
        """Rows of each fit: disjoint, of the same size, at most one row left over."""
        half = len(self.x_NF) // 2
        return slice(0, half), slice(half, 2 * half)


def measure(config: Config, rows: TuningRows, device: torch.device | None = None) -> Measures:
    """Fit each half with a seed of its own, label all rows with both fits, and judge them.

    Raises:
        NumericalError: A fit diverged, or ended without a partition.
    """
    x = torch.from_numpy(rows.x_NF)
    partitions, generalisations = [], []
    for number, half in enumerate(rows.halves):
        own = config.model_copy(update={"seed": (config.seed + number) % 2**32})
        found = fit(own, rows.x_NF[half], rows.widths, device, rows.typed)
        z_ND = found.embedded(x)
        partitions.append(nearest_centroid(z_ND.numpy(), found.centroids_KD.numpy()))
        unseen_N = torch.ones(len(x), dtype=torch.bool)
        unseen_N[half] = False
        generalisations.append(
            generalisation(
                z_ND, found.centroids_KD, unseen_N, config.refine.alpha, config.refine.size_balance
            )
        )
    known = [value for value in generalisations if value is not None]
    return judge_partitions(rows, partitions, config.most_clusters, config.seed).model_copy(
        update={"generalisation": float(np.mean(known)) if known else None}
    )


def judge_partitions(
    rows: TuningRows, partitions: Sequence[NDArray[np.int64]], clusters: int, seed: int
) -> Measures:
    """Measures of two partitions of the rows, shape (rows,) each, without generalisation."""
    modularities, silhouettes, scores, sizes = [], [], [], []
    for labels_N in partitions:
        drawn = stratified_rows(labels_N, clusters, seed)
        modularities.append(modularity(rows.near_QM, labels_N, clusters))
        silhouettes.append(macro_silhouette(rows.space_NF[drawn], labels_N[drawn]))
        sizes.append(np.bincount(labels_N, minlength=clusters))
        if rows.classes_N is not None:
            scores.append(agreement(contingency_of(labels_N, rows.classes_N)).nmi)
    first, second = partitions
    return Measures(
        stability=stability(first, second),
        modularity=float(np.mean(modularities)),
        modularity_error=_error(modularities),
        silhouette=float(np.mean(silhouettes)),
        silhouette_error=_error(silhouettes),
        generalisation=None,
        empty_clusters=max(int((size == 0).sum()) for size in sizes),
        smallest_share=float(min(size.min() for size in sizes)) / len(first),
        largest_share=float(max(size.max() for size in sizes)) / len(first),
        nmi=float(np.mean(scores)) if scores else None,
    )


def _error(two: Sequence[float]) -> float:
    """Standard error of the mean of two values."""
    return abs(two[0] - two[1]) / 2
