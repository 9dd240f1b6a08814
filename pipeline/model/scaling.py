"""Scaling of raw rows, fitted to the sample once and then part of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# Distance from the origin, in scaled units, within which float32 rounds by less than 1e-6.
_NEAR = 16.0
# Below this, a product or difference of two numbers of float32 still fits float32.
_LARGE = 1e37

ScalingMode = Literal["standard", "minmax", "unit_norm", "none"]


@dataclass(frozen=True)
class Moments:
    """Mergeable statistics of each feature, without missing values."""

    count_F: NDArray[np.int64]  # number of values
    mean_F: NDArray[np.float64]
    m2_F: NDArray[np.float64]  # Σ (x − mean)²
    min_F: NDArray[np.float64]  # smallest value; +inf without values
    max_F: NDArray[np.float64]  # largest value; −inf without values
    missing_F: NDArray[np.int64]  # number of null, NaN or infinite values

    @classmethod
    def of(cls, x_BF: NDArray[np.generic]) -> Moments:
        """Moments of a block of rows, shape (rows, features); not finite means missing."""
        x_BF = np.asarray(x_BF, dtype=np.float64)
        finite_BF = np.isfinite(x_BF)
        count_F = finite_BF.sum(axis=0)
        with np.errstate(invalid="ignore", over="ignore"):  # ``fit_scaler`` refuses what overflows
            mean_F = np.sum(x_BF, axis=0, where=finite_BF) / np.maximum(count_F, 1)
            m2_F = np.sum(np.square(x_BF - mean_F), axis=0, where=finite_BF)
        return cls(
            count_F=count_F,
            mean_F=mean_F,
            m2_F=m2_F,
            min_F=np.min(x_BF, axis=0, where=finite_BF, initial=np.inf),
            max_F=np.max(x_BF, axis=0, where=finite_BF, initial=-np.inf),
            missing_F=len(x_BF) - count_F,
        )

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of rows together (Chan, Golub & LeVeque 1983, eq. 2.1)."""
        count_F = self.count_F + other.count_F
        share_F = other.count_F / np.maximum(count_F, 1)
        with np.errstate(invalid="ignore", over="ignore"):
            delta_F = other.mean_F - self.mean_F
            mean_F = self.mean_F + delta_F * share_F
            m2_F = self.m2_F + other.m2_F + np.square(delta_F) * self.count_F * share_F
        return Moments(
            count_F=count_F,
            mean_F=mean_F,
            m2_F=m2_F,
            min_F=np.minimum(self.min_F, other.min_F),
            max_F=np.maximum(self.max_F, other.max_F),
            missing_F=self.missing_F + other.missing_F,
        )


class Scaler(nn.Module):
    """Scales raw rows for the network: scaled = (x − offset) · factor.

    A vector column is one quantity in one unit (pixels, an embedding), so the spread of its
    components is information: each has its own offset, and all share one factor. Scalar columns
    have units of their own, so each has its own factor.

    Args:
        mode: standard (mean 0, variance 1), minmax ([0, 1] over the sample), unit_norm (every row
            scaled to mean square 1, that is ‖x‖² = F as in the DEC paper) or none.
        mean_F: Mean of each feature, which replaces missing values, shape (features,).
        offset_F: Offset of each feature, shape (features,).
        factor_F: Factor of each feature, shape (features,).
    """

    mean_F: Tensor
    offset_F: Tensor
    factor_F: Tensor

    def __init__(
        self,
        mode: ScalingMode,
        mean_F: NDArray[np.float64],
        offset_F: NDArray[np.float64],
        factor_F: NDArray[np.float64],
    ) -> None:
        super().__init__()
        self.mode: ScalingMode = mode
        for name, values_F in (("mean_F", mean_F), ("offset_F", offset_F), ("factor_F", factor_F)):
            # A float32 offset could not tell two timestamps of one minute apart.
            self.register_buffer(name, torch.from_numpy(np.array(values_F, dtype=np.float64)))
        # Farther from the origin the difference of two products would lose digits.
        with np.errstate(over="ignore"):
            self._near_origin = bool(np.abs(offset_F * factor_F).max(initial=0) <= _NEAR)
            extremes = np.abs(np.concatenate([offset_F, factor_F, 1 / factor_F]))
        # Whether float32 is too small for the numbers on the way, if not for the scaled ones.
        self._in_float64 = bool(extremes.max(initial=0) > _LARGE)

    @property
    def width(self) -> int:
        """Width of a scaled row."""
        return len(self.mean_F)

    @property
    def categories(self) -> tuple[int, ...]:
        """Widths of the one-hot groups at the end of a scaled row."""
        return ()

    def error(self, reconstructed_BF: Tensor, x_BF: Tensor) -> Tensor:
        """The autoencoder's loss: squared error of scaled rows, summed, a scalar."""
        return (reconstructed_BF - x_BF).square().sum()

    @classmethod
    def fit(cls, mode: ScalingMode, moments: Moments, widths: Sequence[int]) -> Scaler:
        """Fit offset and factor to the moments of a sample.

        ``widths`` has the number of features of each column: 1 for a scalar, d for a vector.
        """
        features = len(moments.mean_F)
        # The mean of equal values is inexact, and theirs is the only value that is 0 when scaled.
        has_values_F = moments.count_F > 0
        mean_F = np.where(has_values_F, moments.mean_F, 0.0)
        np.clip(mean_F, moments.min_F, moments.max_F, out=mean_F, where=has_values_F)
        starts = np.unique(np.cumsum([0, *widths[:-1]]))
        offset_F, spread_F = np.zeros(features), np.ones(features)
        if mode == "standard":
            # Σ (x − mean)² of equal values is rounding error where their mean is inexact.
            m2_F = np.where(moments.min_F < moments.max_F, moments.m2_F, 0.0)
            column_m2 = np.add.reduceat(m2_F, starts)
            column_count = np.add.reduceat(moments.count_F, starts)
            offset_F = mean_F
            spread_F = np.repeat(np.sqrt(column_m2 / np.maximum(column_count, 1)), widths)
        elif mode == "minmax":
            offset_F = np.repeat(np.minimum.reduceat(moments.min_F, starts), widths)
            spread_F = np.repeat(np.maximum.reduceat(moments.max_F, starts), widths) - offset_F
        # A constant column has no spread: its factor is 1.
        usable_F = np.isfinite(spread_F) & (spread_F > 0)
        offset_F = np.where(np.isfinite(offset_F), offset_F, 0.0)
        return cls(mode, mean_F, offset_F, 1 / np.where(usable_F, spread_F, 1.0))

    def forward(self, x_BF: Tensor) -> Tensor:
        """Raw rows of any real dtype, not finite where missing → scaled rows, float32."""
        may_miss = x_BF.is_floating_point()
        wide = x_BF.dtype == torch.float64 or self._in_float64
        x_BF = x_BF.double() if wide else x_BF.float()
        # One reduction shows that nothing is missing; a GPU replaces faster than it answers.
        if may_miss and (x_BF.is_cuda or not torch.isfinite(x_BF.sum())):
            x_BF = torch.where(torch.isfinite(x_BF), x_BF, self.mean_F.to(x_BF.dtype))
        if self.mode == "none":
            return x_BF.float()
        if self.mode == "unit_norm":
            return _unit_norm(x_BF).float()
        offset_F, factor_F = self.offset_F.to(x_BF.dtype), self.factor_F.to(x_BF.dtype)
        if self._near_origin:  # x · factor − offset · factor, in one sweep
            return torch.addcmul(-offset_F * factor_F, x_BF, factor_F).float()
        return ((x_BF - offset_F) * factor_F).float()


def _unit_norm(x_BF: Tensor) -> Tensor:
    """Rows with mean square 1; a row of zeros has no direction and stays zero."""
    if x_BF.dtype == torch.float64:  # which holds the squares of float32 only
        largest_B1 = x_BF.abs().amax(dim=1, keepdim=True)
        x_BF = x_BF / torch.where(largest_B1 > 0, largest_B1, 1.0)
    norm_B1 = torch.linalg.vector_norm(x_BF, dim=1, keepdim=True, dtype=torch.float64)
    factor_B1 = torch.where(norm_B1 > 0, x_BF.shape[1] ** 0.5 / norm_B1, 0.0)
    # In two steps, since float32 may not hold the factor of a tiny row.
    root_B1 = factor_B1.sqrt().to(x_BF.dtype)
    return x_BF * root_B1 * root_B1
