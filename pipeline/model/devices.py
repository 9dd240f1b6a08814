"""Where the model computes: the processor, or a GPU that rows are sent to.

Whoever builds a model moves it; everything else follows its parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Rows encoded at a time. On a processor their activations stay in its cache: fewer make weights
# move more often than need be, and 65,536 take half as long again. A GPU wants its cores full, and
# 65,536 rows of 2,000 activations are a quarter of a gigabyte in bfloat16.
_ENCODED_ROWS = {"cpu": 2_048, "cuda": 65_536}


def device_of(module: nn.Module) -> torch.device:
    """Where the module's parameters or buffers lie; the processor for one that has none."""
    tensors = (*module.parameters(), *module.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


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
    some = x_BF.split(_ENCODED_ROWS.get(device.type, 2_048))  # type: ignore[no-untyped-call]
    return torch.cat([encoder(scaler(to_device(rows_BF, device))) for rows_BF in some])
