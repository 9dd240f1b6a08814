"""The fully connected autoencoder of the DEC paper."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["auto", "float32", "bfloat16"]


def fastest_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it faster than float32, else float32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.bfloat16 if fast else torch.float32


def products_here(precision: Precision) -> Literal["float32", "bfloat16"]:
    """Precision of the matrix products of a network on this machine's processor."""
    if precision == "auto":
        fast = fastest_precision(torch.device("cpu")) == torch.bfloat16
        return "bfloat16" if fast else "float32"
    return precision


class Perceptron(nn.Sequential):
    """Linear layers with ReLU between them; the last one is linear, as in the paper.

    Weights, gradients and what goes in and comes out are float32. Only the products inside are of
    another precision.

    Args:
        widths: Of the input, the hidden layers and the output.
        precision: Of the matrix products: "float32", "bfloat16", or "auto" for the faster.
    """

    def __init__(self, widths: Sequence[int], precision: Precision = "float32") -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            # In place: a fresh matrix of activations costs more than the comparison.
            layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
        super().__init__(*layers[:-1])
        self.precision: Precision = precision

    def forward(self, x_BF: Tensor) -> Tensor:
        """(batch, width of the input) → (batch, width of the output), float32."""
        # Autocast to float32 is off: a float64 network stays one.
        reduced = self.reduced(x_BF.device)
        with torch.autocast(x_BF.device.type, torch.bfloat16, enabled=reduced):
            out_BF: Tensor = super().forward(x_BF)  # type: ignore[no-untyped-call]
        return out_BF.float() if out_BF.dtype == torch.bfloat16 else out_BF

    def reduced(self, device: torch.device) -> bool:
        """Whether products are of less precision than float32."""
        if self.precision == "auto":
            return fastest_precision(device) == torch.bfloat16
        return self.precision == "bfloat16"


def freeze(network: nn.Module) -> None:
    """For inference alone: keep weights as the products want them, cast once and not each time."""
    network.requires_grad_(False)
    for part in _reduced_parts(network):
        part.to(torch.bfloat16)


def products_of(network: nn.Module) -> str:
    """Precision of the network's matrix products where it is: "float32" or "bfloat16"."""
    return "bfloat16" if _reduced_parts(network) else "float32"


def _reduced_parts(network: nn.Module) -> list[Perceptron]:
    perceptrons = (part for part in network.modules() if isinstance(part, Perceptron))
    return [part for part in perceptrons if part.reduced(next(part.parameters()).device)]


class Autoencoder(nn.Module):
    """Encoder F → hidden → D and its mirror image as decoder (Xie et al. 2016, section 3.2).

    Args:
        features: F, width of a scaled row.
        hidden: Widths of the encoder's hidden layers, for example (500, 500, 2000).
        embedding: D, width of the embedding.
        precision: Of the matrix products; see ``Perceptron``.
        seed: Seeds the initial weights, whatever was drawn from torch's generator before.
    """

    def __init__(
        self,
        features: int,
        hidden: Sequence[int],
        embedding: int,
        seed: int = 0,
        *,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.embedding = embedding
        widths = (features, *hidden, embedding)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder: nn.Module = Perceptron(widths, precision)
            self.decoder: nn.Module = Perceptron(widths[::-1], precision)
            for layer in self.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.zeros_(layer.bias)

    def forward(self, x_BF: Tensor) -> Tensor:
        """Reconstruct scaled rows, shape (batch, features) in and out."""
        return self.decoder(self.encoder(x_BF))  # type: ignore[no-any-return]

    @torch.no_grad()
    def rescale_embedding(self, factor: float) -> None:
        """Multiply every embedding with ``factor``; reconstructions stay as they are."""
        *_, last = (layer for layer in self.encoder.modules() if isinstance(layer, nn.Linear))
        last.weight.mul_(factor)
        last.bias.mul_(factor)
        first = next(layer for layer in self.decoder.modules() if isinstance(layer, nn.Linear))
        first.weight.div_(factor)
