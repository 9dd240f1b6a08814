"""The model's device, CPU or GPU, and batch sizes that suit it.

The code that builds a model moves it to its device; rows follow its parameters.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

# Rows encoded at a time. On a CPU their activations stay in its cache: 65,536 take half as long
# again. A GPU needs large batches; 65,536 rows of 2,000 activations are 0.25 GB in bfloat16.
_ENCODED_ROWS = {"cpu": 1_024, "cuda": 65_536}

# Number of activations of the rows learnt from at a time: 2 MiB of float32 stay in a CPU's cache
# through the two dozen sweeps of a step. Wide networks take this many rows all the same, because
# every portion also moves all weights and gradients.
_LEARNT_ACTIVATIONS = 2**19
_LEAST_LEARNT_ROWS = 1_024


def device_of(module: nn.Module) -> torch.device:
    """Device of the module's parameters or buffers; the CPU for a module without any."""
    tensors = (*module.parameters(), *module.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def claimed_device(gpus: float) -> torch.device:
    """Device of a process that claims this many GPUs: torch's current one, or else the CPU."""
    if gpus and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def to_device(x_BF: Tensor, device: torch.device) -> Tensor:
    """Move rows to the model's device.

    To a GPU they go in their stored type, a quarter of float32 for bytes, and from pinned memory,
    so that the copy overlaps with the work on the rows before.
    """
    if device.type != "cuda" or x_BF.device == device:
        return x_BF.to(device)
    return x_BF.pin_memory().to(device, non_blocking=True)


def embeddings(encoder: nn.Module, scaler: nn.Module, x_BF: Tensor) -> Tensor:
    """Embeddings of any number of raw rows, as many at a time as suits the device.

    Rows may be on any device; z_BD, shape (rows, embedding), is on that of encoder and scaler.
    """
    device = device_of(scaler)
    some = x_BF.split(_ENCODED_ROWS.get(device.type, 1_024))  # type: ignore[no-untyped-call]
    return torch.cat([encoder(scaler(to_device(rows_BF, device))) for rows_BF in some])


def learnt_at_a_time(network: nn.Module) -> int:
    """Rows of a batch whose gradients are computed together: few on a CPU, all on a GPU.

    Gradients of the portions add up to the batch's. 32,768 rows of a network 64-8-2 took half the
    time in portions of 4,096, and 2,048 of the default network 5 % less.
    """
    if device_of(network).type != "cpu":
        return sys.maxsize
    widths = sum(m.out_features for m in network.modules() if isinstance(m, nn.Linear))
    return max(_LEAST_LEARNT_ROWS, _LEARNT_ACTIVATIONS // max(1, widths))
