"""The fully connected autoencoder of the DEC paper."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def _perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU between them; the last one is linear, as in the paper."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Autoencoder(nn.Module):
    """Encoder F → hidden → D and its mirror image as decoder (Xie et al. 2016, section 3.2).

    Args:
        features: F, width of a scaled row.
        hidden: Widths of the encoder's hidden layers, for example (500, 500, 2000).
        embedding: D, width of the embedding.
        seed: Seeds the initial weights, whatever was drawn from torch's generator before.
    """

    def __init__(self, features: int, hidden: Sequence[int], embedding: int, seed: int = 0) -> None:
        super().__init__()
        self.embedding = embedding
        widths = (features, *hidden, embedding)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder: nn.Module = _perceptron(widths)
            self.decoder: nn.Module = _perceptron(widths[::-1])
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
