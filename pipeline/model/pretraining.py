"""Pretraining: the autoencoder learns to reconstruct scaled rows (Xie et al. 2016, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.config import Pretrain
from pipeline.model.autoencoder import Autoencoder
from pipeline.model.scaling import Scaler
from pipeline.model.training import (
    TrainingRows,
    cosine_with_warmup,
    in_step,
    require_finite,
    restore,
    state_of,
)
from pipeline.model.workers import global_update, rank_and_size

# Below this, an update costs more for moving the weights than for the rows.
_LEAST_BATCH_ROWS = 32


@dataclass(frozen=True)
class PretrainPass:
    """One pass over the training rows.

    Attributes:
        number: Passes done, from 1.
        loss: Mean squared error per feature, in scaled units, over the pass.
        rows: Rows of all workers that were learnt from.
    """

    number: int
    loss: float
    rows: int


def update_rows(settings: Pretrain, rows: int) -> int:
    """Rows of a global batch: ``batch_rows``, or fewer when a small table gives few updates.

    A pass over 1,797 rows in batches of 256 is 8 updates, and 30 such passes do not train the
    network. Smaller batches give more updates for the same arithmetic.
    """
    few = settings.passes * rows // max(1, settings.min_updates)
    return min(settings.batch_rows, max(_LEAST_BATCH_ROWS, few - few % 8))


class Pretraining:
    """Resumable training of the autoencoder, the same on one worker and on many."""

    def __init__(
        self, autoencoder: Autoencoder, scaler: Scaler, settings: Pretrain, seed: int = 0
    ) -> None:
        self.autoencoder = autoencoder
        self.seed = seed
        self.scaler = scaler
        self.settings = settings
        self.passes_done = 0
        # fused: one sweep over the weights; an update of a small batch spends half its time here.
        self.optimizer = torch.optim.Adam(
            autoencoder.parameters(), lr=settings.learning_rate, fused=True
        )

    def run(self, rows: TrainingRows) -> Iterator[PretrainPass]:
        """Make the passes that are left, yielding after each.

        Raises:
            NumericalError: The loss is no longer finite.
        """
        passes = self.settings.passes
        batch_rows = update_rows(self.settings, rows.total_rows)
        parameters = list(self.autoencoder.parameters())
        while self.passes_done < passes:
            loss_total, seen = 0.0, 0
            noise = torch.Generator().manual_seed(self._noise_seed())
            for x_BF in in_step(rows, self.passes_done, batch_rows):
                done = self.passes_done + min(1.0, seen / max(1, rows.total_rows))
                self._set_learning_rate(done / passes)
                x_BF = self.scaler(x_BF)
                reconstructed_BF = self.autoencoder(self._hide(x_BF, noise))
                error = (reconstructed_BF - x_BF).square().sum() / rows.features
                loss, global_rows = global_update(self.optimizer, parameters, error, len(x_BF))
                if not global_rows:
                    break
                loss_total, seen = loss_total + loss, seen + global_rows
            self.passes_done += 1
            mean_loss = loss_total / max(1, seen)
            require_finite(mean_loss, "pretrain", "pretrain.learning_rate")
            yield PretrainPass(self.passes_done, mean_loss, seen)

    def _hide(self, x_BF: Tensor, noise: torch.Generator) -> Tensor:
        """Masking noise (Vincent et al. 2010): set inputs to 0, scale up the others to make up."""
        keep = 1 - self.settings.noise
        if keep == 1:
            return x_BF
        return x_BF * torch.empty_like(x_BF).bernoulli_(keep, generator=noise).div_(keep)

    def _noise_seed(self) -> int:
        """Of this pass on this worker, so that a resumed training hides the same inputs."""
        rank, size = rank_and_size()
        return (self.seed * 1_000_003 + self.passes_done) * size + rank

    def _set_learning_rate(self, fraction_done: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * cosine_with_warmup(fraction_done)

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed training needs."""
        state = state_of(self.autoencoder, self.optimizer)
        return state | {"passes_done": torch.tensor(self.passes_done)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue where ``state`` was taken."""
        self.passes_done = int(state["passes_done"])
        restore(state, self.autoencoder, self.optimizer)
