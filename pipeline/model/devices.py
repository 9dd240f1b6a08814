"""Where the model computes: the processor, or a GPU that rows are sent to.

Whoever builds a model moves it; everything else follows its parameters.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

# Rows encoded at a time. On a processor their activations stay in its cache: fewer make weights
# move more often than need be, and 65,536 take half as long again. A GPU wants its cores full, and
# 65,536 rows of 2,000 activations are a quarter of a gigabyte in bfloat16.
_ENCODED_ROWS = {"cpu": 1_024, "cuda": 65_536}

# Activations of a portion of rows that is learnt from, in numbers: 2 MiB of float32 stay in a
# processor's cache through the two dozen sweeps of a step. But every portion also moves all
# weights and their gradients, so that wide networks want this many rows all the same.
_LEARNT_ACTIVATIONS = 2**19
_LEAST_LEARNT_ROWS = 1_024


def device_of(module: nn.Module) -> torch.device:
    """Where the module's parameters or buffers lie; the processor for one that has none."""
    tensors = (*module.parameters(), *module.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def claimed_device(gpus: float) -> torch.device:
    """Where a process computes that was given this many GPUs: on one, where torch sees it.

    Whoever shares out GPUs names to each process those that it may see, or makes one current.
    """
    if gpus and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def to_device(x_BF: Tensor, device: torch.device) -> Tensor:
    """Rows where the model is.

    To a GPU they go as they are stored, a quarter of float32 for bytes, from pinned memory: the
    copy runs while the card still works on the rows before.
    """
    if device.type != "cuda" or x_BF.device == device:
        return x_BF.to(device)
    return x_BF.pin_memory().to(device, non_blocking=True)


def embeddings(encoder: nn.Module, scaler: nn.Module, x_BF: Tensor) -> Tensor:
    """Embeddings of any number of raw rows, as many at a time as suits the device.

    Args:
        encoder: Of scaled rows.
        scaler: Scales raw rows; is where the encoder is.
        x_BF: Raw rows, shape (rows, features), anywhere.

    Returns:
        z_BD, shape (rows, embedding), where the encoder is.
    """
    device = device_of(scaler)
    some = x_BF.split(_ENCODED_ROWS.get(device.type, 1_024))  # type: ignore[no-untyped-call]
    return torch.cat([encoder(scaler(to_device(rows_BF, device))) for rows_BF in some])


def learnt_at_a_time(network: nn.Module) -> int:
    """Rows of a batch whose gradients are computed together: a few on a processor, all on a GPU.

    Gradients of the portions of a batch add up to the batch's. 32,768 rows of a network 64-8-2
    took half the time in portions of 4,096, and 2,048 of the default one a twentieth less.
    """
    if device_of(network).type != "cpu":
        return sys.maxsize
    widths = sum(m.out_features for m in network.modules() if isinstance(m, nn.Linear))
    return max(_LEAST_LEARNT_ROWS, _LEARNT_ACTIVATIONS // max(1, widths))
