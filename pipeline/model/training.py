"""Rows, batches, schedule and resumable state, for pretraining and refinement."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from pipeline.model.workers import rank_and_size, share_of

if TYPE_CHECKING:  # torch and numpy are all that this package needs to run
    from pipeline.config import Optimization

# In smaller batches an update takes longer for the weights than for the rows.
_LEAST_BATCH_ROWS = 32


class TrainingRows(Protocol):
    """One worker's share of the training rows."""

    total_rows: int
    """Number of rows, all workers together."""

    features: int
    """F, width of a raw row."""

    def batches(self, pass_number: int, batch_rows: int, *, shuffled: bool) -> Iterator[Tensor]:
        """Raw rows of this worker, each once, shape (≤ batch_rows, features).

        Their order depends on the seed and the pass only.
        """


def in_step(rows: TrainingRows, pass_number: int, batch_rows: int) -> Iterator[Tensor]:
    """This worker's part of each global batch, without end: empty once its share is used up.

    So all workers take the same number of steps; the caller stops at an empty global batch.
    """
    rank, size = rank_and_size()
    local_rows = max(1, share_of(batch_rows, rank, size))
    nothing = torch.empty((0, rows.features))
    return chain(rows.batches(pass_number, local_rows, shuffled=True), repeat(nothing))


def update_rows(settings: Optimization, rows: int) -> int:
    """Rows of a global batch: ``batch_rows``, or fewer where a small table gives few updates.

    30 passes over 1,797 rows in batches of 256 are 240 updates, which do not train the network;
    smaller batches give more updates for the same arithmetic.
    """
    few = settings.passes * rows // max(1, settings.min_updates)
    return min(settings.batch_rows, max(_LEAST_BATCH_ROWS, few - few % 8))


def cosine_with_warmup(fraction_done: float, warmup_fraction: float = 0.05) -> float:
    """Factor of the learning rate: linear warm-up, then half a cosine down to 0."""
    if fraction_done < warmup_fraction:
        return fraction_done / warmup_fraction
    progress = (fraction_done - warmup_fraction) / (1 - warmup_fraction)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class _Uncompiled(torch.optim.Optimizer):
    """An optimizer without its methods' wrappers for ``torch.compile``.

    They import torch's compiler, which costs each training process 1.5 s of CPU, only to disable
    it.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class _Sgd(_Uncompiled, torch.optim.SGD):
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class _AdamW(_Uncompiled, torch.optim.AdamW):
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def optimizer_of(
    parameters: Sequence[nn.Parameter], settings: Optimization
) -> torch.optim.Optimizer:
    """The optimizer that the settings name."""
    rate, decay = settings.learning_rate, settings.weight_decay
    # fused: one sweep over the weights, half the time of an update of a small batch.
    if settings.optimizer == "sgd":
        return _Sgd(parameters, rate, momentum=0.9, weight_decay=decay, fused=True)
    return _AdamW(parameters, rate, weight_decay=decay, fused=True)


def learning_rate_at(settings: Optimization, fraction_done: float) -> float:
    """The learning rate when this fraction of the passes is done."""
    if settings.schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate * cosine_with_warmup(fraction_done)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def state_of(modules: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and optimizer moments under flat names, for a file without pickle."""
    state = {f"module.{name}": tensor for name, tensor in modules.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
    return state


def restore(state: dict[str, Tensor], modules: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load what ``state_of`` returned."""
    modules.load_state_dict(
        {k.removeprefix("module."): v for k, v in state.items() if k.startswith("module.")}
    )
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = tensor
    current = optimizer.state_dict()
    optimizer.load_state_dict({"state": moments, "param_groups": current["param_groups"]})
