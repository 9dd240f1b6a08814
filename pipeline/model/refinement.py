"""Refinement: DEC sharpens encoder and centroids together (Xie et al. 2016, section 3.1).

Exact at any size. The target p needs q of every row as the model stood at the last update. A
frozen copy of encoder and centroids computes it for each batch on the fly, so that nothing grows
with rows × clusters, and the frequency f is summed over the whole pass and all workers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.config import Refine
from pipeline.errors import NumericalError
from pipeline.model.dec import kl_divergence, soft_assignment, target_distribution
from pipeline.model.scaling import Scaler
from pipeline.model.training import TrainingRows, in_step, require_finite, restore, state_of
from pipeline.model.workers import global_update, sum_over_workers

# Rows a batch where nothing is learnt: big enough for the matrix products to run at full speed.
_MEASURE_BATCH_ROWS = 4096


class ClusterModel(nn.Module):
    """Encoder and centroids: what refinement trains and what assigns rows to clusters."""

    def __init__(self, encoder: nn.Sequential, centroids_KD: Tensor, alpha: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.centroids_KD = nn.Parameter(centroids_KD.clone())
        self.alpha = alpha

    def forward(self, x_BF: Tensor) -> Tensor:
        """Soft assignment q of scaled rows: (batch, features) → (batch, n_clusters)."""
        return soft_assignment(self.encoder(x_BF), self.centroids_KD, self.alpha)


@dataclass(frozen=True)
class RefineUpdate:
    """The model as it stood at an update of the target distribution.

    Attributes:
        number: Updates before this one; 0 is the k-means partition.
        label_change: Share of rows whose cluster changed since the update before; None at 0.
        kl: Mean KL(P‖Q) a row, in nats, over the pass that led here; None at 0.
        cluster_rows: Rows of the training set in each cluster, shape (n_clusters,).
        finished: Whether refinement ends here, and its reason: "tol" or "passes".
    """

    number: int
    label_change: float | None
    kl: float | None
    cluster_rows: tuple[int, ...]
    finished: str | None


class Refinement:
    """Resumable refinement, the same on one worker and on many."""

    def __init__(self, model: ClusterModel, scaler: Scaler, settings: Refine) -> None:
        self.model = model
        self.scaler = scaler
        self.settings = settings
        self.frozen = copy.deepcopy(model).requires_grad_(False)
        self.passes_done = 0
        self.kl: float | None = None
        self.optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate, fused=True)

    def run(self, rows: TrainingRows) -> Iterator[RefineUpdate]:
        """Alternate updates of the target with passes, yielding at each update.

        Raises:
            NumericalError: The loss is no longer finite, or there is no row to learn from.
        """
        while True:
            frequency_K, cluster_rows_K, changed = self._measure(rows)
            total = int(cluster_rows_K.sum())
            if not total:
                raise NumericalError("refine: no training row is left; expected at least one")
            label_change = changed / total if self.passes_done else None
            finished = None
            if label_change is not None and label_change < self.settings.tol:
                finished = "tol"
            elif self.passes_done >= self.settings.passes:
                finished = "passes"
            yield RefineUpdate(
                number=self.passes_done,
                label_change=label_change,
                kl=self.kl,
                cluster_rows=tuple(int(n) for n in cluster_rows_K),
                finished=finished,
            )
            if finished:
                return
            self.frozen.load_state_dict(self.model.state_dict())
            self.kl = self._learn(rows, frequency_K)
            self.passes_done += 1

    def _learn(self, rows: TrainingRows, frequency_K: Tensor) -> float:
        """One pass of gradient steps on KL(P‖Q); returns its mean a row."""
        parameters = list(self.model.parameters())
        kl_total, seen = 0.0, 0
        for x_BF in in_step(rows, self.passes_done, self.settings.batch_rows):
            x_BF = self.scaler(x_BF)
            p_BK = target_distribution(self.frozen(x_BF), frequency_K)
            kl = kl_divergence(p_BK, self.model(x_BF))
            kl_sum, global_rows = global_update(self.optimizer, parameters, kl, len(x_BF))
            if not global_rows:
                break
            kl_total, seen = kl_total + kl_sum, seen + global_rows
        mean_kl = kl_total / max(1, seen)
        require_finite(mean_kl, "refine", "refine.learning_rate")
        return mean_kl

    @torch.no_grad()
    def _measure(self, rows: TrainingRows) -> tuple[Tensor, Tensor, int]:
        """One pass without learning, over all workers.

        Returns:
            f_j = Σ_i q_ij, shape (n_clusters,), float64, in rows; rows of each cluster, shape
            (n_clusters,), float64; rows whose cluster differs from the frozen model's.
        """
        clusters = len(self.model.centroids_KD)
        frequency_K = torch.zeros(clusters, dtype=torch.float64)
        cluster_rows_K = torch.zeros(clusters, dtype=torch.float64)
        changed = torch.zeros(1, dtype=torch.float64)
        for x_BF in rows.batches(self.passes_done, _MEASURE_BATCH_ROWS, shuffled=False):
            x_BF = self.scaler(x_BF)
            q_BK = self.model(x_BF)
            labels_B = q_BK.argmax(dim=1)
            frequency_K += q_BK.sum(dim=0, dtype=torch.float64)
            cluster_rows_K += torch.bincount(labels_B, minlength=clusters)
            if self.passes_done:
                changed += (labels_B != self.frozen(x_BF).argmax(dim=1)).sum()
        totals = sum_over_workers(torch.cat([frequency_K, cluster_rows_K, changed]))
        frequency_K, cluster_rows_K, changed = totals.split([clusters, clusters, 1])  # type: ignore[no-untyped-call]
        return frequency_K, cluster_rows_K, int(changed.item())

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed refinement needs."""
        both = nn.ModuleDict({"live": self.model, "frozen": self.frozen})
        kl = float("nan") if self.kl is None else self.kl
        return state_of(both, self.optimizer) | {
            "passes_done": torch.tensor(self.passes_done),
            "kl": torch.tensor(kl, dtype=torch.float64),
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue where ``state`` was taken."""
        both = nn.ModuleDict({"live": self.model, "frozen": self.frozen})
        restore(state, both, self.optimizer)
        self.passes_done = int(state["passes_done"])
        self.kl = float(state["kl"]) if self.passes_done else None
