"""One update from a batch that is spread over all workers.

The gradient of the mean loss over the *global* batch, exact for unequal shares too: workers sum
gradients, loss and rows in one all-reduce, and divide by the rows afterwards. A mean of
per-worker means, as in torch's DistributedDataParallel, weighs a row more where fewer lie.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank_and_size() -> tuple[int, int]:
    """This worker's number and how many there are; (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_workers(tensor: Tensor) -> Tensor:
    """Replace the tensor, in place, by its sum over all workers."""
    if rank_and_size()[1] > 1:
        dist.all_reduce(tensor)
    return tensor


def share_of(total: int, rank: int, size: int) -> int:
    """How many of `total` fall to this rank when they are shared out evenly."""
    return (rank + 1) * total // size - rank * total // size


def global_update(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    loss_sum: Tensor,
    rows: int,
    *,
    max_norm: float | None = None,
    also: Tensor | None = None,
) -> tuple[Tensor, int, Tensor]:
    """Step the optimizer along the mean loss of the global batch.

    Args:
        optimizer: Over exactly these parameters.
        parameters: In the same order on every worker.
        loss_sum: Loss summed over this worker's rows, a scalar with a graph; of no rows too.
        rows: This worker's rows.
        max_norm: Longest gradient of the mean loss; longer ones are scaled down to it.
        also: Another scalar of this worker's rows, to be summed along, for the record.

    Returns:
        The loss summed over the global batch, its rows, and the sum of ``also``, the sums where
        the model is: whoever looks at them waits for a GPU. With 0 rows everywhere the pass is
        over on all workers at once, and nothing was updated.
    """
    optimizer.zero_grad()
    alone = rank_and_size()[1] == 1
    # Dividing the loss costs nothing; dividing the gradients is a sweep over all weights.
    (loss_sum / max(1, rows) if alone else loss_sum).backward()  # type: ignore[no-untyped-call]
    gradients = [p.grad for p in parameters if p.grad is not None]
    loss, also_sum = loss_sum.detach(), (loss_sum if also is None else also).detach()
    if not alone:
        scalars = (loss, loss.new_tensor(float(rows)), also_sum)
        totals = torch.stack([scalar.float() for scalar in scalars])
        flat = torch.cat([totals, *(g.flatten() for g in gradients)])
        sum_over_workers(flat)
        totals, *summed = flat.split([3, *(g.numel() for g in gradients)])  # type: ignore[no-untyped-call]
        loss, also_sum, rows = totals[0], totals[2], int(totals[1])
        for gradient, total in zip(gradients, summed, strict=True):
            torch.div(total.view_as(gradient), max(1, rows), out=gradient)
    if rows:
        if max_norm is not None:
            nn.utils.clip_grad_norm_(parameters, max_norm)
        optimizer.step()
    return loss, rows, also_sum
