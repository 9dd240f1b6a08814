"""One update from a batch that is spread over all workers.

The gradient of the mean loss over the *global* batch, exact for unequal shares too: workers sum
gradients, loss and rows in one all-reduce, then divide by the rows. A mean of per-worker means, as
in torch's DistributedDataParallel, would weigh rows of smaller shares more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank_and_size() -> tuple[int, int]:
    """Rank of this worker and number of workers; (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_workers(tensor: Tensor) -> Tensor:
    """Replace the tensor, in place, by its sum over all workers."""
    if rank_and_size()[1] > 1:
        dist.all_reduce(tensor)
    return tensor


def share_of(total: int, rank: int, size: int) -> int:
    """This rank's part of `total` divided evenly."""
    return (rank + 1) * total // size - rank * total // size


def global_update(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    losses: Iterable[tuple[Tensor, Tensor]],
    rows: int,
    *,
    max_norm: float | None = None,
) -> tuple[Tensor, int, Tensor]:
    """Step the optimizer along the mean loss of the global batch.

    Args:
        optimizer: Optimizer of exactly these parameters.
        parameters: In the same order on every worker.
        losses: For each portion of this worker's rows, at least one, which may be empty: the loss
            summed over the portion, a scalar with a graph, and another scalar to be summed for the
            record. Each graph is freed before the next portion is requested.
        rows: Number of this worker's rows, all portions together.
        max_norm: Maximum norm of the gradient of the mean loss; longer ones are scaled down.

    Returns:
        The loss summed over the global batch, its rows, and the sum of the other scalar. The sums
        stay on the model's device, for reading them waits for a GPU. 0 rows mean that the pass has
        ended on all workers, and nothing was updated.
    """
    optimizer.zero_grad()
    alone = rank_and_size()[1] == 1
    sums: list[Tensor] = []
    for loss, also in losses:
        # Dividing the loss is free; dividing the gradients is a sweep over all weights.
        (loss / max(1, rows) if alone else loss).backward()  # type: ignore[no-untyped-call]
        sums.append(torch.stack([loss.detach(), also.detach()]))
    both = torch.stack(sums).sum(dim=0)
    if not alone:
        gradients = [p.grad for p in parameters if p.grad is not None]
        totals = torch.cat([both, both.new_tensor([float(rows)])]).float()
        flat = torch.cat([totals, *(g.flatten() for g in gradients)])
        sum_over_workers(flat)
        totals, *summed = flat.split([3, *(g.numel() for g in gradients)])  # type: ignore[no-untyped-call]
        both, rows = totals[:2], int(totals[2])
        for gradient, total in zip(gradients, summed, strict=True):
            torch.div(total.view_as(gradient), max(1, rows), out=gradient)
    if rows:
        if max_norm is not None:
            nn.utils.clip_grad_norm_(parameters, max_norm)
        optimizer.step()
    return both[0], rows, both[1]
