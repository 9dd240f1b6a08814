"""Pretraining: the autoencoder learns to reconstruct scaled rows (Xie et al. 2016, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.errors import NumericalError
from pipeline.model.augmentation import Augmentation, hide, randomness
from pipeline.model.autoencoder import Autoencoder, products_of
from pipeline.model.devices import device_of, learnt_at_a_time, to_device
from pipeline.model.scaling import Scaler
from pipeline.model.training import (
    TrainingRows,
    in_step,
    learning_rate_at,
    optimizer_of,
    restore,
    set_learning_rate,
    state_of,
    update_rows,
)
from pipeline.model.workers import global_update, rank_and_size

if TYPE_CHECKING:  # torch and numpy are all that this package needs to run
    from pipeline.config import Pretrain

# Chosen by measurement; decision 0008.
_NOISE = 0.2
_NARROW = 0.1


@dataclass(frozen=True)
class PretrainPass:
    """One pass over the training rows.

    Attributes:
        number: Number of passes done, from 1.
        loss: Mean squared error per feature over the pass, in scaled units; for typed columns,
            squared error and cross-entropy relative to those of a constant prediction.
        rows: Rows learnt from, of all workers.
        learning_rate: Learning rate at the end of the pass.
        products: Precision of matrix products: "float32" or "bfloat16".
    """

    number: int
    loss: float
    rows: int
    learning_rate: float
    products: str


def noise_of(settings: Pretrain, features: int, embedding: int) -> float:
    """Share of the inputs that is hidden.

    An embedding wide enough to copy most of a row learns nothing about clusters; noise prevents
    that. A narrow one cannot copy, and there noise only slows training down.
    """
    if settings.noise is not None:
        return settings.noise
    return _NOISE if embedding >= features * _NARROW else 0.0


class Pretraining:
    """Resumable training of the autoencoder, with the same result on one worker and on many."""

    def __init__(
        self,
        autoencoder: Autoencoder,
        scaler: Scaler,
        settings: Pretrain,
        seed: int = 0,
        *,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.autoencoder = autoencoder
        self.seed = seed
        self.device = device_of(autoencoder)
        self.scaler = scaler.to(self.device)
        self.settings = settings
        self.augmentation = augmentation
        self.passes_done = 0
        self._portion_rows = learnt_at_a_time(autoencoder)
        self.optimizer = optimizer_of(list(autoencoder.parameters()), settings)

    def run(self, rows: TrainingRows) -> Iterator[PretrainPass]:
        """Make the remaining passes, yielding after each.

        Raises:
            NumericalError: The loss is no longer finite.
        """
        while self.passes_done < self.settings.passes:
            loss, seen = self._learn(rows)
            self.passes_done += 1
            if not math.isfinite(loss):
                raise NumericalError(
                    f"pretrain: the loss became {loss}; expected a finite number. "
                    "Lower pretrain.learning_rate or look for extreme values in the features"
                )
            rate = self.optimizer.param_groups[0]["lr"]
            yield PretrainPass(self.passes_done, loss, seen, rate, products_of(self.autoencoder))

    def _learn(self, rows: TrainingRows) -> tuple[float, int]:
        """Make one pass; returns its loss and the rows learnt from, over all workers."""
        settings = self.settings
        batch_rows = update_rows(settings, rows.total_rows)
        parameters = list(self.autoencoder.parameters())
        rank = rank_and_size()[0]
        loss_total, seen = torch.zeros((), dtype=torch.float64, device=self.device), 0
        for step, batch_BF in enumerate(in_step(rows, self.passes_done, batch_rows)):
            done = self.passes_done + min(1.0, seen / max(1, rows.total_rows))
            set_learning_rate(self.optimizer, learning_rate_at(settings, done / settings.passes))
            random = randomness(self.seed, self.passes_done, step, rank)
            loss, global_rows, _ = global_update(
                self.optimizer,
                parameters,
                self._losses(batch_BF, random),
                len(batch_BF),
                max_norm=settings.max_gradient_norm,
            )
            if not global_rows:
                break
            loss_total, seen = loss_total.add_(loss), seen + global_rows
        return loss_total.item() / max(1, seen), seen

    def _losses(self, batch_BF: Tensor, random: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Error per scaled feature, summed over the rows of each portion of a batch."""
        features = batch_BF.shape[1]
        noise = noise_of(self.settings, features, self.autoencoder.embedding)
        for some_BF in batch_BF.split(self._portion_rows):  # type: ignore[no-untyped-call]
            x_BF = to_device(some_BF, self.device)
            if self.augmentation:
                x_BF = self.augmentation(x_BF, random)
            x_BF = self.scaler(x_BF)
            reconstructed_BF = self.autoencoder(hide(x_BF, noise, random))
            error = self.scaler.error(reconstructed_BF, x_BF) / x_BF.shape[1]
            yield error, error

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed training needs."""
        state = state_of(self.autoencoder, self.optimizer)
        return state | {"passes_done": torch.tensor(self.passes_done)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue from ``state``."""
        self.passes_done = int(state["passes_done"])
        restore(state, self.autoencoder, self.optimizer)
