"""The fully connected autoencoder of the DEC paper."""

from __future__ import annotations

import itertools
import math
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
    """Precision of matrix products on this machine's processor."""
    if precision != "auto":
        return precision
    fast = fastest_precision(torch.device("cpu")) == torch.bfloat16
    return "bfloat16" if fast else "float32"


class Perceptron(nn.Sequential):
    """Linear layers with ReLU between them; the last one is linear, as in the paper.

    Weights, gradients, inputs and outputs are float32; only matrix products may be bfloat16:
    ``precision`` is "float32", "bfloat16", or "auto" for the faster.
    """

    def __init__(self, widths: Sequence[int], precision: Precision = "float32") -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(widths):
            # In place: a new matrix of activations costs more than the comparison.
            layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
        super().__init__(*layers[:-1])
        self.precision: Precision = precision

    def forward(self, x_BF: Tensor) -> Tensor:
        """(batch, width of the input) → (batch, width of the output), float32."""
        # No autocast to float32: a float64 network stays float64.
        reduced = self.reduced(x_BF.device)
        with torch.autocast(x_BF.device.type, torch.bfloat16, enabled=reduced):
            out_BF: Tensor = super().forward(x_BF)  # type: ignore[no-untyped-call]
        return out_BF.float() if out_BF.dtype == torch.bfloat16 else out_BF

    def reduced(self, device: torch.device) -> bool:
        """Whether matrix products are less precise than float32."""
        if self.precision == "auto":
            return fastest_precision(device) == torch.bfloat16
        return self.precision == "bfloat16"


def freeze(network: nn.Module) -> None:
    """Prepare a network for inference only: cast weights once to the precision of its products."""
    network.requires_grad_(False)
    for part in _reduced_parts(network):
        part.to(torch.bfloat16)


def products_of(network: nn.Module) -> str:
    """Precision of the network's matrix products on its device: "float32" or "bfloat16"."""
    return "bfloat16" if _reduced_parts(network) else "float32"


def _reduced_parts(network: nn.Module) -> list[Perceptron]:
    perceptrons = (part for part in network.modules() if isinstance(part, Perceptron))
    return [part for part in perceptrons if part.reduced(next(part.parameters()).device)]


class CategoryEmbedding(nn.Module):
    """Learned embeddings of categories, the first layer of a network for typed columns.

    The last channels of a scaled row are one-hot groups, one per category. Each group is replaced
    by fewer learned numbers; all other channels pass through.

    Args:
        features: E, width of a scaled row.
        categories: Channels of each category; the last two are other values and null.
    """

    def __init__(self, features: int, categories: Sequence[int]) -> None:
        super().__init__()
        self.plain = features - sum(categories)
        widths = [embedded_width(size) for size in categories]
        self.tables = nn.ParameterList(
            # Like a one-hot group, a row of a table has a length of about 1.
            torch.randn(size, width) / width**0.5
            for size, width in zip(categories, widths, strict=True)
        )
        for table in self.tables:  # other values and null are neutral at first
            table.data[-2:] = 0
        self.width = self.plain + sum(widths)

    def forward(self, x_BE: Tensor) -> Tensor:
        """(batch, channels) → (batch, width)."""
        parts, start = [x_BE[:, : self.plain]], self.plain
        for table in self.tables:
            parts.append(x_BE[:, start : start + len(table)] @ table)
            start += len(table)
        return torch.cat(parts, dim=1)


def embedded_width(channels: int) -> int:
    """Width of the embedding of a category of so many channels.

    fast.ai's rule of thumb (Howard & Gugger 2020, "fastai: A Layered API for Deep Learning",
    emb_sz_rule); never more than channels.
    """
    return min(channels, round(1.6 * math.pow(channels, 0.56)))


class Autoencoder(nn.Module):
    """Encoder F → hidden → D and its mirror image as decoder (Xie et al. 2016, section 3.2).

    Args:
        features: F, width of a scaled row.
        hidden: Widths of the encoder's hidden layers, for example (500, 500, 2000).
        embedding: D, width of the embedding.
        precision: Precision of matrix products; see ``Perceptron``.
        seed: Seed of the initial weights, independent of torch's global generator.
        categories: Channels of each category, the last ones of a row; see ``CategoryEmbedding``.
    """

    def __init__(
        self,
        features: int,
        hidden: Sequence[int],
        embedding: int,
        seed: int = 0,
        *,
        precision: Precision = "float32",
        categories: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.widths = widths = (features, *hidden, embedding)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder: nn.Module
            if categories:
                embedded = CategoryEmbedding(features, categories)
                layers = Perceptron((embedded.width, *widths[1:]), precision)
                self.encoder = nn.Sequential(embedded, layers)
            else:
                self.encoder = Perceptron(widths, precision)
            self.decoder: nn.Module = Perceptron(widths[::-1], precision)
            for layer in self.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.zeros_(layer.bias)

    def forward(self, x_BF: Tensor) -> Tensor:
        """Reconstruct scaled rows, shape (batch, features) in and out; logits for typed columns."""
        return self.decoder(self.encoder(x_BF))  # type: ignore[no-any-return]

    @torch.no_grad()
    def transform_embedding(self, matrix_DD: Tensor) -> None:
        """Multiply every embedding with an invertible matrix; reconstructions do not change.

        Args:
            matrix_DD: M in z M, of rows z, shape (embedding, embedding).
        """
        inverse_DD = torch.linalg.inv(matrix_DD.double())
        *_, last = (layer for layer in self.encoder.modules() if isinstance(layer, nn.Linear))
        first = next(layer for layer in self.decoder.modules() if isinstance(layer, nn.Linear))
        for parameter, changed in (
            (last.weight, matrix_DD.T.double() @ last.weight.double()),
            (last.bias, last.bias.double() @ matrix_DD.double()),
            (first.weight, first.weight.double() @ inverse_DD.T),
        ):
            parameter.copy_(changed)
